"""The measured sections of docs/pruning.md and docs/distillation.md, ours beside what others have published.

Ours are from benchmarks/results/{prune,prune_speed,prune_distill,qad,distill_speed}.json; theirs, each with its source
and with what makes it another measurement than ours, from benchmarks/results/published_pruning.json.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from readme_distilled import DISTILLED_ON, measured, share
from readme_engine import table

from compress.distill.fused import CHUNK_BYTES, LIVE
from compress.distill.recipe import DistillRecipe, GenerateRecipe

RESULTS = Path(__file__).parent / "results"
BYTES_AN_ENTRY = 8  # of a top-k cache: a float32 log-probability and an int32 id
# What a field says itself stands in its own description; these have none.
UNSAID = {
    "windows": "how many",
    "temperature": "divides the logits; 1 is the model as it is",
    "weight_decay": "of matrices, AdamW's",
    "warmup_steps": "updates; the rate rises from nothing, then falls with a cosine",
    "loss": "a loss or a list of them",
    "evaluate": "`{every: updates, windows: number}`",
    "seed": "of all chance in it",
}
Row = dict[str, Any]


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf8"))


def _named(row: Row) -> str:
    return f"[{row['work']}]({row['source']})"


def cuts() -> str:
    """A row a way to cut, its cost by domain."""
    found: dict[str, dict[str, Row]] = {}
    for row in _read("prune"):
        found.setdefault(row["recipe"], {})[row["domain"]] = row
    domains = list(dict.fromkeys(row["domain"] for row in _read("prune")))
    rows = []
    for recipe, by_domain in found.items():
        first = by_domain[domains[0]]
        kl = [f"{by_domain[domain]['kl_nats']:.2f}" for domain in domains]
        rows.append([recipe, f"{100 * first['share']:.0f} %", *kl, f"{first['elapsed_s']:.0f}"])
    return table(
        ["cut", "decoder left", *(f"KL, nats, {domain}" for domain in domains), "seconds"], 2 + len(domains), rows
    )


def held() -> str:
    """What real shapes take to be pruned, a way after the other."""
    sizes = ("peak_gpu_gib", "peak_host_gib", "peak_anonymous_gib", "host_gib")
    rows = [
        [
            f"InternLM2-{row['shape'].upper()}, {row['layers']} of {row['of_layers']} layers", row["way"],
            row["device"].replace("cpu", "2 CPU cores"), f"{row['windows']} × {row['length']:,}",
            *(_gib(row[name]) for name in sizes), f"{row['elapsed_s']:,.0f}",
        ]
        for row in _read("prune_speed")
    ]  # fmt: skip
    heads = ["shape", "cut", "on", "windows × tokens", "GPU", "host", "of it no file's", "limit", "seconds"]
    return table(heads, 5, rows)


def _gib(size: float | None) -> str:
    return "–" if size is None else f"{size:.1f} GiB"


def beside() -> str:
    """Ours, then others': from the whole model over the cut one to the trained one."""
    heads = ["work", "cut", "trained on", "score", "whole → cut → trained", "kept", "won back", "what is different"]
    return table(heads, 0, [*_ours(), *(_theirs(row) for row in _read("published_pruning")["cuts"])])


def _ours() -> list[list[str]]:
    rows = {(r["model"], r["way"], r["stage"]): r for r in measured() if r["domain"] == DISTILLED_ON[r["model"]]}
    lines = []
    for (model, way, stage), row in rows.items():
        if stage != "distilled":
            continue
        base, pruned = rows[model, way, "base"], rows[model, way, "pruned"]
        less = 100 * (1 - row["parameters"] / base["parameters"])
        text = f"perplexity of {DISTILLED_ON[model]}".replace("of all", "of all held-out text")
        ways = " → ".join(f"{r['perplexity']:.2f}" for r in (base, pruned, row))
        cut = f"{model}, {less:.0f} % of the decoder: {way}"
        lines.append(["**turbopress**", cut, _tokens(row["tokens"]), text, ways, "", share(row, "recovered"), ""])
    return lines


def _tokens(count: int) -> str:
    return f"{count / 1e6:.1f} M tokens" if count >= 1e6 else f"{count / 1e3:.0f} k tokens"


def _theirs(row: Row) -> list[str]:
    whole, pruned, trained = (row.get(name) for name in ("whole", "pruned", "trained"))
    ways = " → ".join("–" if value is None else f"{value:.2f}" for value in (whole, pruned, trained)) if whole else ""
    last = pruned if trained is None else trained
    kept = f"{row['kept']} %; {row['instead']}" if "kept" in row else f"{100 * last / whole:.1f} %"
    won = "" if pruned is None or trained is None else f"{100 * (trained - pruned) / (whole - pruned):.0f} %"
    return [_named(row), row["cut"], row["trained_on"] or "nothing", row["score"], ways, kept, won, row["differs"]]


def repairs() -> str:
    """How much of what 4 bits cost is won back in 4 bits."""
    heads = ["work", "model", "score", "whole → 4 bits → trained", "closed", "what is different"]
    best = max((row for row in _read("qad") if row["domain"] == "all"), key=lambda row: row["closed"])
    ways = " → ".join(f"{value:.4f}" for value in (0, best["kl_before_nats"], best["kl_after_nats"]))
    seen = f"SmolLM2-135M, groups of 64, {_tokens(best['tokens'])}"
    rows = [["**turbopress**", seen, "KL to the base, nats", ways, share(best, "closed"), ""]]
    for row in _read("published_pruning")["repairs"]:
        whole, quantized, trained = (row[name] for name in ("whole", "quantized", "trained"))
        ways = " → ".join(f"{value:.{row['decimals']}f}" for value in (whole, quantized, trained))
        closed = f"{100 * (quantized - trained) / (quantized - whole):.0f} %"
        rows.append([_named(row), row["model"], row["score"], ways, closed, row["differs"]])
    return table(heads, 0, rows)


def caches() -> str:
    """Bytes a token of others' caches beside ours of as many entries."""
    rows = [
        [_named(row), str(row["k"]), str(row["bytes"]), f"{BYTES_AN_ENTRY * row['k']:,}"]
        for row in _read("published_pruning")["caches"]
    ]
    return table(["cache", "entries a token", "its bytes a token", "ours with as many (8 · k)"], 3, rows)


def bound() -> str:
    """The most that logits take on a GPU and on a processor."""
    gpu, cpu = (LIVE * CHUNK_BYTES[kind] / 2**20 for kind in ("cuda", "cpu"))
    each = CHUNK_BYTES["cuda"] / 2**20
    most = f"{gpu / 1024:.1f} GiB there, {cpu:.0f} MiB on a processor"
    return f"at most {LIVE} float32 tensors of {each:.0f} MiB each on a GPU: {most}"


def peaks() -> str:
    """What one card held at most, an update's shape after the other."""
    rows = [
        [
            f"{row['batch']} × {row['length']:,}", str(row["processes"]), "yes" if row["compile"] else "no",
            f"{row['peak_memory_bytes'] / 2**30:.0f} GiB", f"{row['tokens_per_s']:,.0f}",
        ]
        for row in _read("distill_speed")
    ]  # fmt: skip
    return table(["windows × tokens an update", "GPUs", "compiled", "most on a GPU", "tokens a second"], 2, rows)


def _defaults(recipe: type[BaseModel]) -> str:
    """A row a field: its default, and what it says of itself."""
    rows = []
    for name, field in recipe.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            default = f"{{kind: {default.kind}}}"  # the loss
        said = "must be said" if default is PydanticUndefined else f"`{json.dumps(default)}`".replace('"', "")
        rows.append([f"`{name}`", said, field.description or UNSAID[name]])
    return table(["key", "default", "meaning and unit"], 0, rows)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "cuts": cuts,
    "held": held,
    "beside": beside,
    "repairs": repairs,
    "caches": caches,
    "bound": bound,
    "peaks": peaks,
    "distill_defaults": lambda: _defaults(DistillRecipe),
    "generate_defaults": lambda: _defaults(GenerateRecipe),
}
