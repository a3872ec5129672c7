"""The memory of a card as a picture: one bar a way to serve, in the parts that fill it."""

from collections.abc import Sequence
from pathlib import Path

from serving.choices import Choice

PARTS = {"weights": "#2f6db5", "kv_cache": "#3a7d44", "workspace": "#d08a2e", "context": "#b9c4d0"}
WORDS = {"weights": "weights", "kv_cache": "KV cache", "workspace": "workspace", "context": "CUDA and kernels"}


def picture(rows: Sequence[Choice], path: Path) -> None:
    """Writes the bars, the card's size as a line, and the tokens that each remembers."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and a table needs none

    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))[::-1]
    card = rows[0].plan.gpu_bytes / 2**30
    left = [0.0] * len(rows)
    for part, color in PARTS.items():
        sizes = [getattr(row.plan, f"{part}_bytes") / 2**30 for row in rows]
        axes.barh(places, sizes, left=left, color=color, label=WORDS[part])
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    end = max(*left, card)
    for place, row in zip(places, rows, strict=True):
        axes.annotate(f"{row.plan.tokens:,} tokens", (end * 1.01, place), va="center", fontsize=8)
    axes.axvline(card, color="#444444", linestyle="--", linewidth=1)
    axes.set_yticks(list(places), [_label(row) for row in rows], fontsize=8)
    axes.set(xlabel="GiB of a GPU (dashed: the card)", xlim=(0, 1.18 * end))
    axes.margins(y=0.01)
    figure.legend(loc="outside upper center", ncols=len(PARTS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _label(row: Choice) -> str:
    kv = row.profile.quant_policy or 16
    return f"{row.weight_bits}-bit, KV {kv}, {row.profile.cache_max_entry_count:g}"
