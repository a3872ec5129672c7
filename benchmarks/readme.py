"""Puts the measured figures into README.md: each stands between `<!-- NAME … -->` and `<!-- end -->`.

    python benchmarks/readme.py        # after reports/ or benchmarks/results/ have changed

A test renders the page again and compares, so a figure that no file backs cannot stand there.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/serving.py would stand before the package

from pipelines.summary import markdown
from serving.memory import plan
from serving.profile import EngineProfile
from serving.shape import read_shape

ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"(<!-- (\w+)[^>]*-->)(.*?)(<!-- end -->)", re.DOTALL)


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf8"))


def _table() -> str:
    return "\n" + markdown(_read("reports/summary.json"))


def _recipes() -> str:
    head = (
        "| recipe | perplexity | KL, nats | top-1 as base | of rtn's KL closed |\n| --- | ---: | ---: | ---: | ---: |\n"
    )
    rows = [
        f"| {row['recipe']} | {row['perplexity']:.3f} | {row['kl_nats']:.4f} | {100 * row['top1_agreement']:.1f} % "
        f"| {100 * row['closed_of_rtn']:.0f} % |\n"
        for row in _read("benchmarks/results/demo_recipes.json")
    ]
    return "\n" + head + "".join(rows)


def _quality() -> str:
    """A row a recipe, a column a domain; who made no weights has the reason instead."""
    rows = _read("benchmarks/results/quantizer_quality.json")
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["recipe"], {})[row["domain"]] = row
    head = f"| recipe | {' | '.join(domains)} | seconds |\n| --- |{' ---: |' * (len(domains) + 1)}\n"
    order = sorted(found, key=lambda recipe: found[recipe][domains[0]].get("kl_nats", float("inf")))
    return "\n" + head + "".join(_quality_row(recipe, found[recipe], domains) for recipe in order)


def _quality_row(recipe: str, found: dict[str, Any], domains: list[str]) -> str:
    first = found[domains[0]]
    if first["reason"]:
        return f"| {recipe} | {first['reason']} |{' |' * len(domains)}\n"
    kl = " | ".join(f"{found[domain]['kl_nats']:.4f}" for domain in domains)
    return f"| {recipe} | {kl} | {first['elapsed_s']:.0f} |\n"


def _speed() -> str:
    rows = _read("benchmarks/results/quantizer_speed.json")
    heads = ("shape", "recipe", "layers", "GPUs", "seconds", "floor", "GPU memory")
    head = f"| {' | '.join(heads)} |\n| --- | --- |{' ---: |' * 5}\n"
    return (
        "\n"
        + head
        + "".join(
            f"| {row['shape']} | {row['recipe']} | {row['layers']} of {row['of_layers']} | {row['gpus']} "
            f"| {row['elapsed_s']:.0f} | {row['floor_s']:.0f} | {row['peak_gpu_gib']:.1f} GiB |\n"
            for row in rows
        )
    )


def _distilled() -> str:
    """A row a way to cut and stage, over all held-out text, with what the stage writes by itself."""
    rows = {(r["model"], r["way"], r["stage"], r["domain"]): r for r in _read("benchmarks/results/prune_distill.json")}
    heads = ("model", "cut", "stage", "perplexity", "KL, nats", "won back", "4-grams said twice")
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- | --- |{' ---: |' * 4}"]
    for (model, way, stage, domain), row in rows.items():
        of_base = stage in {"base", "base-w4"}  # the same for every way
        if domain != "all" or (of_base and way != "depth"):
            continue
        won = "" if row["recovered"] is None else _share(row)
        twice = rows[model, way, stage, "written"]["repetition"]
        found = f"{row['perplexity']:.2f} | {row['kl_nats']:.4f} | {won} | {100 * twice:.0f} %"
        lines.append(f"| {model} | {'' if of_base else way} | {stage} | {found} |")
    return "\n" + "\n".join(lines) + "\n"


def _share(row: dict[str, Any]) -> str:
    """What is won back, with its interval, in percent."""
    value, low, high = (100 * row[name] for name in ("recovered", "recovered_low", "recovered_high"))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def _engine() -> str:
    return f"{max(abs(row['difference_nats']) for row in _read('benchmarks/results/turbomind.json')):.5f}"


def _repro() -> str:
    run = _read("benchmarks/results/demo_pipeline.json")["make_repro"]
    return f"{run['elapsed_s'] / 60:.1f} minutes and {run['peak_bytes'] / 2**30:.1f} GiB"


def _memory() -> str:
    shape = read_shape(ROOT / "benchmarks" / "results" / "internlm2_chat_1_8b.json")
    lines = [
        "| weights | KV cache | cache ratio | nvidia-smi | planned | tokens |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in _read("benchmarks/results/tutorial_readings.json"):
        told = EngineProfile(cache_max_entry_count=row["cache"])
        planned = plan(shape, told, 24 * 2**30, row["weight_bits"])
        lines.append(
            f"| {row['weight_bits']}-bit | 16-bit | {row['cache']} | {row['read_mib']:,} MiB "
            f"| {planned.total_bytes / 2**20:,.0f} MiB | {planned.tokens:,} |"
        )
    return "\n" + "\n".join(lines) + "\n"


def _switches() -> str:
    found = _read("benchmarks/results/shipping.json")
    exports = [entry for entry in found["kills"].values() if isinstance(entry, dict)]
    registered = found["register kills"]
    misses = found["switches"]["misses"] + sum(entry["misses"] for entry in exports) + registered["half_visible"]
    kills = sum(entry["kills"] for entry in exports) + registered["killed"]
    met = "no reader met half a model" if misses == 0 else f"readers met half a model {misses} times"
    return (
        f"{found['switches']['switches']:,} switches under a reading loop and {kills} kills at random points of "
        f"exporting (a folder, OpenSSH, S3) and registering, {met}"
    )


def _replay() -> str:
    return f"{_read('benchmarks/results/replay.json')['times_smaller']:.0f}"


def _gguf() -> str:
    """The 4-bit rows together, at their worst."""
    found = _read("benchmarks/results/gguf.json")
    rows = [row for row in found["models"] if row["groups"]]
    bits = max(row["bits_per_linear_weight"] for row in rows)
    kl = max(row["file_in_our_forward"]["kl_nats"] for row in rows)
    top1 = 100 * min(row["llama_cpp"]["top1_agreement"] for row in rows)
    nats = max(abs(row["llama_cpp"]["difference_nats"]) for row in rows)
    return (
        f"In the linears that is {bits:.1f} bits a weight, and costs a KL of {kl:.0e} nats. llama.cpp, which rounds "
        f"activations to 8 bits besides, has the likeliest token of our unpacked weights at {top1:.1f} % of positions "
        f"and their mean negative log-likelihood to {nats:.4f} nats"
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "table": _table,
    "recipes": _recipes,
    "quality": _quality,
    "speed": _speed,
    "distilled": _distilled,
    "engine": _engine,
    "repro": _repro,
    "memory": _memory,
    "switches": _switches,
    "replay": _replay,
    "gguf": _gguf,
}


def render(text: str) -> str:
    """The page with every section made anew."""
    return SECTION.sub(lambda match: match[1] + SECTIONS[match[2]]() + match[4], text)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(render(page.read_text("utf8")), "utf8")
