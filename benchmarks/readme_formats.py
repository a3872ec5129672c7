"""The tables of docs/formats.md: what each weight format costs, how fast it is served, what the engine answered."""

from pathlib import Path
from typing import Any

from readme_engine import read, table

RESULTS = Path(__file__).parent / "results"


def costs() -> str:
    """A format's damage to the demo base, from the folder that was written."""
    rows = [
        [
            row["format"], f"{row['bits_per_linear_weight']:.2f}", f"{row['perplexity']:.3f}", f"{row['kl_nats']:.4f}",
            f"{100 * row['top1_agreement']:.1f} %",
        ]
        for row in read("benchmarks/results/demo_formats.json")
    ]  # fmt: skip
    return table(["format", "bits a linear's weight", "perplexity", "KL, nats", "top-1 as base"], 4, rows)


def speeds() -> str:
    """Tokens a second of each format in a real shape."""
    rows = [
        [
            row["format"], f"{row['weight_bytes'] / 1e9:.2f} GB", f"{row['kv_bits']} bits",
            f"{row['tokens_s_batch_1']:,.0f}", f"{row['tokens_s_batch_64']:,.0f}",
        ]
        for row in read("benchmarks/results/format_speed.json")
    ]  # fmt: skip
    return table(["format", "weights", "cache", "1 at once", "64 at once"], 4, rows)


def asked() -> str:
    """A format after the other: how far the engine's answers are from our unpacked weights', at their worst."""
    files = sorted(RESULTS.glob("formats/*.conformance.json"))
    return "; ".join(_asked(file.name.removesuffix(".conformance.json"), read(file)["cases"]) for file in files)


def _asked(name: str, cases: list[dict[str, Any]]) -> str:
    cases = [case for case in cases if case["perplexity"]]
    apart = max(abs(case["engine_perplexity"] / case["perplexity"] - 1) for case in cases)
    top1 = min(case["top1_agreement"] for case in cases)
    layouts, bits = ([*dict.fromkeys(case[key] for case in cases)] for key in ("layout", "kv_bits"))
    ways = f"layout {' and '.join(layouts)}, KV cache of {' and '.join(map(str, bits))} bits"
    return f"`{name}` ({ways}): perplexity to {100 * apart:.2f} %, likeliest token at {100 * top1:.1f} % of positions"


SECTIONS = {"demo_formats": costs, "speeds": speeds, "asked": asked}
