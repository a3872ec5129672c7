"""Puts the measured figures into README.md and pages of docs/, each between `<!-- NAME … -->` and `<!-- end -->`.

    python benchmarks/readme.py        # after reports/ or benchmarks/results/ have changed

Tests render the pages again and compare, so a figure that no file backs cannot stand there.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/serving.py would stand before the package
sys.path.append(str(Path(__file__).parent))

import readme_distilled
import readme_engine
import readme_formats
import readme_ingredients
import readme_pruned
from readme_distilled import share
from readme_engine import read

from pipelines.summary import markdown
from serving.memory import plan
from serving.profile import EngineProfile
from serving.shape import read_shape

ROOT = Path(__file__).parents[1]
PROCESSOR_TIMES = 3  # what quantizing on a processor is to take at most, of the two forward passes in it
MOVED = 0.03  # by which a recipe's divergence differs between two runs at most
SECTION = re.compile(r"(<!-- (\w+)[^>]*-->)(.*?)(<!-- end -->)", re.DOTALL)


def _table() -> str:
    return "\n" + markdown(read("reports/summary.json"))


def _recipes() -> str:
    head = (
        "| recipe | perplexity | KL, nats | top-1 as base | of rtn's KL closed |\n| --- | ---: | ---: | ---: | ---: |\n"
    )
    rows = [
        f"| {row['recipe']} | {row['perplexity']:.3f} | {row['kl_nats']:.4f} | {100 * row['top1_agreement']:.1f} % "
        f"| {100 * row['closed_of_rtn']:.0f} % |\n"
        for row in read("benchmarks/results/demo_recipes.json")
    ]
    return "\n" + head + "".join(rows)


def _quality() -> str:
    """A row a recipe, a column a domain; who made no weights has the reason instead."""
    rows = read("benchmarks/results/quantizer_quality.json")
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
    seconds = "not timed" if first["elapsed_s"] is None else f"{first['elapsed_s']:.0f}"
    seconds += " beside other work" if first.get("alone") is False else ""
    seconds += ", CPU" if first["device"] == "cpu" else ""
    return f"| {recipe} | {kl} | {seconds} |\n"


def _calibrated() -> str:
    """What other text to calibrate on is worth to the default recipe, over all domains and in each."""
    sure = [row for row in read("benchmarks/results/quantizer_quality.json") if row["recipe"] == "awq-light"]
    few = {row["domain"]: row["kl_nats"] for row in sure}
    rows = [row for row in readme_distilled.measured() if row["stage"] == "base-w4" and row["model"] != "demo base"]
    many = {row["domain"]: row["kl_nats"] for row in rows if row["domain"] in few}
    by_domain = ", ".join(f"{domain} {many[domain]:.3f} instead of {few[domain]:.3f}" for domain in few)
    means = [sum(kl.values()) / len(kl) for kl in (many, few)]
    return f"{means[0]:.3f} nats over these five instead of {means[1]:.3f}: {by_domain}"


def _speed() -> str:
    rows = read("benchmarks/results/quantizer_speed.json")
    heads = ("shape", "recipe", "layers", "GPUs", "seconds", "floor", "times it", "GPU memory", "host")
    head = f"| {' | '.join(heads)} |\n| --- | --- |{' ---: |' * 7}\n"
    rows.sort(key=lambda row: (float(row["shape"].removesuffix("b")), row["recipe"] != "awq-light", row["gpus"]))
    return "\n" + head + "".join(_speed_row(row) for row in rows)


def _processor() -> str:
    """Two cores' seconds beside the forward passes, a layout after the other."""
    rows = read("benchmarks/results/quantizer_cpu.json")
    times = " and ".join(f"{row['times_two_forwards']:.1f} times in the layout {row['layout']}" for row in rows)
    cores = f"{rows[0]['threads']} CPU cores {'with' if rows[0]['bfloat16'] else 'without'} bfloat16"
    told = f"{rows[0]['elapsed_s']:.0f} s on {cores}; of the two forward passes alone, {times}"
    missed = max(row["times_two_forwards"] for row in rows) > PROCESSOR_TIMES
    return f"{told}, more than the {PROCESSOR_TIMES} that were aimed at" if missed else told


def _speed_row(row: dict[str, Any]) -> str:
    beside = {True: "", False: " beside other work", None: " (an earlier run)"}  # before it was written down
    seconds = f"{row['elapsed_s']:.0f}{beside[row['alone']]}"
    limit = f" of {row['host_gib']:.0f}" if row.get("host_gib") else ""
    host = f"{row['peak_host_gib']:.0f}{limit} GiB"
    return (
        f"| {row['shape']} | {row['recipe']} | {row['layers']} of {row['of_layers']} | {row['gpus']} "
        f"| {seconds} | {row['floor_s']:.0f} | {row['times_floor']:.1f} | {row['peak_gpu_gib']:.1f} GiB | {host} |\n"
    )


def _trained() -> str:
    """The best share of the card's peak, with eager beside it, and what a second card adds to as many tokens each."""
    rows = read("benchmarks/results/distill_speed.json")
    alone = [row for row in rows if row["processes"] == 1]
    best, eager = max(alone, key=lambda row: row["share_of_peak"]), next(row for row in alone if not row["compile"])
    two = next(row for row in rows if row["processes"] == 2)
    one = next(row for row in alone if row["compile"] and row["batch"] == two["batch"] // 2)
    return (
        f"{100 * best['share_of_peak']:.0f} % of the bf16 peak that a large product reaches there "
        f"({best['tokens_per_s']:,.0f} tokens a second with {best['batch']} × {best['length']} tokens an update and "
        f"`compile: true`; {100 * eager['share_of_peak']:.0f} % with {eager['batch']} windows and without), two at "
        f"{two['tokens_per_s'] / one['tokens_per_s']:.2f} times its tokens a second"
    )


def _repaired() -> str:
    """The recipe that closes most, over all held-out text and by domain."""
    rows = read("benchmarks/results/qad.json")
    best = max((row for row in rows if row["domain"] == "all"), key=lambda row: row["closed"])
    domains = [row for row in rows if row["recipe"] == best["recipe"] and row["domain"] != "all"]
    by_domain = ", ".join(f"{row['domain']} {share(row, 'closed')}" for row in domains)
    now = {
        row["domain"]: row["kl_nats"]
        for row in read("benchmarks/results/quantizer_quality.json")
        if row["recipe"] == "awq-light"
    }
    shared = [row for row in domains if row["domain"] in now]
    differ = any(abs(now[row["domain"]] / row["kl_before_nats"] - 1) > MOVED for row in shared)
    whose = "`awq-light`'s KL" + ", as an earlier run than the table's made it," * differ
    return (
        f"{share(best, 'closed')} of {whose} over all held-out text in {best['elapsed_s']:.0f} s "
        f"({best['kl_before_nats']:.3f} to {best['kl_after_nats']:.3f} nats): {by_domain}"
    )


def _load() -> str:
    """Tokens a second with the wait for the first, a row a model and a column a load."""
    rows = read("benchmarks/results/serving.json")
    whose = "random weights in real shapes" if any(row.get("shape") for row in rows) else "the demo's variants"
    loads = list(dict.fromkeys(_of_load(row) for row in rows))
    lines = [
        f"Tokens a second of {whose} on an {rows[0]['device']} with LMDeploy 0.18, answers of {rows[0]['output']} "
        "tokens; in brackets\nthe milliseconds to the first token that half of all answers keep, and 99 of 100:\n",
        f"| model | {' | '.join(loads)} |",
        f"| --- |{' ---: |' * len(loads)}",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = {_of_load(row): _under_load(row) for row in rows if row["model"] == model}
        lines.append(f"| {model} | {' | '.join(cells[load] for load in loads)} |")
    return "\n" + "\n".join(lines) + "\n"


def _of_load(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.0f} % of that" if "share" in row else f"{row['batch']} at once"


def _under_load(row: dict[str, Any]) -> str:
    half, most = (1e3 * row["first_token_s"][p] for p in ("p50", "p99"))
    errors = f", {row['errors']} errors" if row["errors"] else ""
    return f"{row['output_tokens_a_second']:,.0f} ({half:.0f}, {most:.0f}{errors})"


def _read_memory() -> str:
    """How far the planner was from nvidia-smi, at most; and of real shapes how far without the cache, if that is there.

    The cache is a share of what is free, so a plan of it alone is nearly right; the rest is what can be wrong.
    """
    rows = [row for row in read("benchmarks/results/memory.json") if "reason" not in row]
    worst = max(abs(row["difference"]) for row in rows)
    told = f"{len(rows)} readings of nvidia-smi on an {rows[0]['device']} agree to {100 * worst:.1f} %"
    shapes = [row for row in rows if row.get("shape")]
    if not shapes:
        return told
    off = max(abs(row["total_bytes"] / row["read_bytes"] - 1) * row["read_bytes"] / _beside(row) for row in shapes)
    names = " and ".join(sorted({row["shape"].upper() for row in shapes}))
    return f"{told} (at {names}'s shapes, of what is beside the cache, to {100 * off:.1f} %)"


def _beside(row: dict[str, Any]) -> float:
    """What was read, without the planned cache."""
    return float(row["read_bytes"] - row["kv_cache_bytes"])


def _cut() -> str:
    """The cheapest cut of feed-forward channels beside the cheapest of layers, on the calibration's kind of text."""
    rows = [row for row in read("benchmarks/results/prune.json") if row["domain"] == "sotu"]
    rows.sort(key=lambda row: row["kl_nats"])
    narrow = next(row for row in rows if not row["removed"])
    short = next(row for row in rows if row["removed"] and "size" not in row["recipe"])  # and nothing besides layers
    return f"{narrow['kl_nats']:.2f} nats a token, {len(short['removed'])} layers fewer {short['kl_nats']:.2f}"


def _repro() -> str:
    run = read("benchmarks/results/demo_pipeline.json")["make_repro"]
    return f"{run['elapsed_s'] / 60:.1f} minutes and {run['peak_bytes'] / 2**30:.1f} GiB"


def _memory() -> str:
    shape = read_shape(ROOT / "benchmarks" / "results" / "internlm2_chat_1_8b.json")
    lines = [
        "| weights | KV cache | cache ratio | nvidia-smi | planned | tokens |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in read("benchmarks/results/tutorial_readings.json"):
        told = EngineProfile(cache_max_entry_count=row["cache"])
        planned = plan(shape, told, 24 * 2**30, row["weight_bits"])
        lines.append(
            f"| {row['weight_bits']}-bit | 16-bit | {row['cache']} | {row['read_mib']:,} MiB "
            f"| {planned.total_bytes / 2**20:,.0f} MiB | {planned.tokens:,} |"
        )
    return "\n" + "\n".join(lines) + "\n"


def _switches() -> str:
    found = read("benchmarks/results/shipping.json")
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
    return f"{read('benchmarks/results/replay.json')['times_smaller']:.0f}"


def _gguf() -> str:
    """The 4-bit rows together, at their worst."""
    found = read("benchmarks/results/gguf.json")
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
    "calibrated": _calibrated,
    "speed": _speed,
    "processor": _processor,
    "distilled": readme_distilled.table,
    "taught": readme_distilled.taught,
    "quantized_student": readme_distilled.quantized_student,
    "trained": _trained,
    "repaired": _repaired,
    "load": _load,
    "readings": _read_memory,
    "cut": _cut,
    "proven": readme_engine.proven,
    "wide": readme_engine.wide,
    "seen": readme_engine.seen,
    "repro": _repro,
    "memory": _memory,
    "switches": _switches,
    "replay": _replay,
    "gguf": _gguf,
}


PAGES: dict[str, Mapping[str, Callable[[], str]]] = {
    "README.md": SECTIONS,
    "docs/pruning.md": readme_pruned.SECTIONS,
    "docs/distillation.md": readme_pruned.SECTIONS,
    "docs/formats.md": readme_formats.SECTIONS,
    "docs/quantizing.md": readme_ingredients.SECTIONS,
}


def render(text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS) -> str:
    """The page with every section made anew."""
    return SECTION.sub(lambda match: match[1] + sections[match[2]]() + match[4], text)


if __name__ == "__main__":
    for page, sections in PAGES.items():
        (ROOT / page).write_text(render((ROOT / page).read_text("utf8"), sections), "utf8")
