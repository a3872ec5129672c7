"""The comparison of all variants: rows from their reports, as a table, as markdown, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.params import Params, ParamsError
from registry.report import read_report

Row = dict[str, Any]
COLUMNS = {
    "variant": "variant",
    "from": "made from",
    "parameters": "parameters",
    "size_bytes": "size",
    "bits_per_weight": "bits a weight",
    "perplexity": "perplexity",
    "perplexity_delta": "against base",
    "kl_nats": "KL, nats",
    "top1_agreement": "top-1 as base",
}
COLORS = {"base": "#444444", "pruned": "#d08a2e", "distilled": "#3a7d44", "quantized": "#2f6db5", "repaired": "#7b4fa3"}


def read_rows(params: Params, reports: Path) -> list[Row]:
    """A row for each variant of `params.yaml` that has a report, in the order of the file."""
    paths = {key: reports / f"{key}.json" for key in params.variants}
    found = {key: read_report(path) for key, path in paths.items() if path.is_file()}
    if not found:
        raise ParamsError(f"{reports}: no reports yet; run `dvc repro`")
    return [row for key, report in found.items() for row in _rows(params, key, report)]


def _rows(params: Params, key: str, report: Row) -> list[Row]:
    """A variant's row, and one for each quantized KV cache that it was measured with: what it loses then."""
    made_from = " + ".join(params.parents(key).values())
    intervals = {"intervals": report["intervals"]} if "intervals" in report else {}
    row = {"variant": key, "kind": report["kind"], "from": made_from, **report["metrics"]}
    caches = report.get("kv_cache", {}).items()
    cached = [row | {"variant": f"{key}, KV {bits}", "kv_cache": bits, "from": key, **lost} for bits, lost in caches]
    return [row | intervals, *cached]


def stored(rows: Sequence[Row]) -> list[Row]:
    """The rows of models, without those that say what a model loses with another KV cache."""
    return [row for row in rows if "kv_cache" not in row]


def pareto(rows: list[Row]) -> list[Row]:
    """The variants that no other beats in both size and perplexity, the smallest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["size_bytes"], row["perplexity"])):
        if not front or row["perplexity"] < front[-1]["perplexity"]:
            front.append(row)
    return front


def cells(row: Row) -> list[str]:
    """A row as people read it."""
    return [
        row["variant"],
        row["from"] or "–",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['size_bytes'] / 1e6:.2f} MB",
        f"{row['bits_per_weight']:.2f}",
        f"{row['perplexity']:.3f}",
        f"{row['perplexity_delta']:+.3f}",
        f"{row['kl_nats']:.4f}",
        f"{100 * row['top1_agreement']:.1f} %",
    ]


def markdown(rows: list[Row]) -> str:
    """The table for a page."""
    head = ["| " + " | ".join(COLUMNS.values()) + " |", "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2)]
    return "\n".join(head + ["| " + " | ".join(cells(row)) + " |" for row in rows]) + "\n"


def table(rows: list[Row]) -> Table:
    """The table for a terminal."""
    result = Table(title="every variant against the base, from the stored artifacts", title_justify="left")
    for number, title in enumerate(COLUMNS.values()):
        result.add_column(title, justify="left" if number < 2 else "right")
    for row in rows:
        result.add_row(*cells(row))
    return result


def picture(rows: list[Row], path: Path) -> None:
    """Size and perplexity, a dot with its 95 % interval beside the base, and a line through the best of each size."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and a table needs none

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rows = stored(rows)
    front = pareto(rows)
    sizes_mb = [row["size_bytes"] / 1e6 for row in front]
    axes.step(sizes_mb, [row["perplexity"] for row in front], where="post", color="#999999", linewidth=1, zorder=1)
    for row, below in zip(rows, _crowded(rows), strict=True):
        size_mb, low, high = row["size_bytes"] / 1e6, *_ends(row)
        axes.vlines(size_mb, low, high, color=COLORS[row["kind"]], alpha=0.6, linewidth=3, zorder=2)
        axes.scatter(size_mb, row["perplexity"], s=60, color=COLORS[row["kind"]], zorder=3)
        place = (7, -12 if below else 4)
        axes.annotate(row["variant"], (size_mb, row["perplexity"]), place, textcoords="offset points", fontsize=9)
    axes.set(xlabel="size of the weights, MB", ylabel="perplexity on held-out text (less is better)", xlim=(0, None))
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _ends(row: Row) -> tuple[float, float]:
    """The perplexity's 95 % interval beside the base on the same text: how hard the text is has no part in it."""
    value, delta = row["perplexity"], row.get("intervals", {}).get("perplexity_delta")
    if delta is None:
        return value, value
    return value + delta["low"] - row["perplexity_delta"], value + delta["high"] - row["perplexity_delta"]


def _crowded(rows: list[Row]) -> list[bool]:
    """Which names would lie on another's: those a little below a neighbour."""
    span = max(row["perplexity"] for row in rows) - min(row["perplexity"] for row in rows) or 1.0
    return [
        any(
            abs(other["size_bytes"] / row["size_bytes"] - 1) < 0.05
            and 0 < other["perplexity"] - row["perplexity"] < span / 15
            for other in rows
        )
        for row in rows
    ]
