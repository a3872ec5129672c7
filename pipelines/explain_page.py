"""An explanation as people read it: a table and what to try on the terminal, a page, a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compress.explain.finding import Finding
from compress.explain.measured import Explanation, Input, Layer, Linear

COLUMNS = (
    "layer", "KL alone, nats", "of the loss", "error of h", "so far", "worst linear", "its error", "of plain",
    "clipped", "greatest input channel",
)  # fmt: skip
LEGEND = (
    "KL alone: the parent with this layer alone swapped for the variant's. Error of h: ‖Δh‖²/‖h‖² behind the layer, of "
    "this layer alone and of all so far. Its error: ‖ΔW x‖²/‖W x‖² on the parent's inputs, and that of the plainly "
    "rounded weight. Clipped: weights beyond their group's grid. Greatest input channel: over the median channel."
)
OURS = "#2f6db5"


def cells(measured: Explanation, layer: Layer) -> list[str]:
    """A layer's row."""
    worst = max((x for x in measured.linears if x.layer == layer.layer), key=lambda x: x.error)
    peak = max((x for x in measured.inputs if x.layer == layer.layer), key=lambda x: x.peak)
    return [
        str(layer.layer),
        _number(layer.kl_nats, "{:.4f}"),
        _percent(measured.share(layer), 0),
        _percent(layer.error),
        _percent(layer.drift),
        _short(worst),
        _percent(worst.error),
        _percent(worst.error / worst.plain_error if worst.plain_error else None, 0),
        _percent(worst.outside, 1),
        f"{_short(peak)} {peak.channels[0]}: {peak.peak:,.1f}×",
    ]


def _short(thing: Linear | Input) -> str:
    return thing.name.split(".")[-1].removesuffix("_proj")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def screen(measured: Explanation, found: Sequence[Finding], name: str) -> RenderableType:
    """For a terminal: the findings first, the layers below."""
    table = Table(title=f"{name}, layer by layer", title_justify="left", caption=LEGEND, caption_justify="left")
    for number, title in enumerate(COLUMNS):
        table.add_column(title, justify="left" if number in (5, 9) else "right")
    for layer in measured.layers:
        table.add_row(*cells(measured, layer))
    return Group(table, Text(), *(Text(line) for line in _lines(found)))


def _lines(found: Sequence[Finding]) -> list[str]:
    """Why, and what now."""
    remedies = [finding for finding in found if finding.remedy]
    seen = ["Why", *(f"  · {finding.seen}" for finding in found)]
    return [*seen, "", "What to try", *(f"  {n}. {finding.remedy}" for n, finding in enumerate(remedies, 1))]


def page(measured: Explanation, found: Sequence[Finding], name: str) -> str:
    """The same in markdown."""
    rows = ["| " + " | ".join(row) + " |" for row in (COLUMNS, *(cells(measured, layer) for layer in measured.layers))]
    rows.insert(1, "| ---: " * len(COLUMNS) + "|")
    remedies = [f"{n}. {f.remedy}" for n, f in enumerate((f for f in found if f.remedy), 1)]
    parts = [f"# {name}", "## Why", "\n".join(f"- {f.seen}" for f in found)]
    parts += ["## What to try", "\n".join(remedies) or "Nothing."]
    return "\n\n".join([*parts, "## Layer by layer", "\n".join(rows), LEGEND]) + "\n"


def picture(measured: Explanation, path: Path) -> None:
    """What each layer loses alone, and what each linear loses, reads and had clipped."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    whole, errors, peaks, outside = figure.subplots(2, 2).flatten()
    _bars(whole, measured)
    _map(
        errors, measured.linears, [x.error for x in measured.linears], "relative output error ‖ΔW x‖²/‖W x‖²", log=True
    )
    _map(peaks, measured.inputs, [x.peak for x in measured.inputs], "greatest input channel over the median", log=True)
    _map(outside, measured.linears, [x.outside or 0 for x in measured.linears], "share of weights clipped")
    # Nothing of the library's version in the file: equal numbers give equal bytes.
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})


def _bars(axes: Axes, measured: Explanation) -> None:
    known = [layer for layer in measured.layers if layer.kl_nats is not None]
    axes.bar([layer.layer for layer in known], [layer.kl_nats or 0 for layer in known], color=OURS)
    axes.set(title="KL with this layer alone quantized", xlabel="decoder layer", ylabel="nats a token")
    axes.set_xlim(-0.6, len(measured.layers) - 0.4)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)


def _map(
    axes: Axes, things: Sequence[Linear | Input], values: Sequence[float], title: str, *, log: bool = False
) -> None:
    """A field for each linear of each layer."""
    names = list(dict.fromkeys(_short(thing) for thing in things))
    rows = [[v for v, thing in zip(values, things, strict=True) if _short(thing) == name] for name in names]
    norm = LogNorm() if log and min(values) > 0 else None
    drawn = axes.imshow(rows, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    axes.set(title=title, xlabel="decoder layer")
    axes.set_yticks(range(len(names)), names)
    axes.figure.colorbar(drawn, ax=axes)
