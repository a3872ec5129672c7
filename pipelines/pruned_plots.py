"""How a pruned model came about, in one picture: layers' scores, a target's candidates, the errors of what was cut."""

from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from pipelines.plots import OURS, REMOVED, THEIRS, Rows, panels

KL = "KL to the whole model, nats a token"


def pruning(rows: Rows, path: Path) -> None:
    """A panel for each kind of row that there is."""
    kinds = [(draw, part) for draw, mark in PANELS.items() if (part := [row for row in rows if mark in row])]
    panels([partial(draw, part) for draw, part in kinds], path)


def _layers(rows: Rows, axes: Axes) -> None:
    """Bars of one round; of several a line each, and a mark where a layer went; what went at once is shaded."""
    score = "influence" if "influence" in rows[0] else "kl_nats"
    what, kl = "decoder layer (orange: removed)", f"{KL}, without it"
    if "layers" in rows[0]:
        what, kl = _at_once(rows, axes, score), KL
    elif rows[-1]["round"] == 0:
        _bars(rows, axes, score)
    else:
        _lines(rows, axes, score)
    axes.set(xlabel=what, ylabel=kl if score == "kl_nats" else "block influence, 1 − cosine")
    if score == "kl_nats" and min(row[score] for row in rows) > 0:
        axes.set_yscale("log")


def _at_once(rows: Rows, axes: Axes, score: str) -> str:
    """Scores of several layers each, a run's at its first; one alone, of layers that were listed, belongs to no layer.
    Returns what the axis shows."""
    for n in (n for row in rows if row["removed"] for n in row["layers"]):
        axes.axvspan(n - 0.5, n + 0.5, color=REMOVED, alpha=0.2, linewidth=0)
    if len(rows) > 1:
        _bars(rows, axes, score)
        return "first layer of the run (orange: taken; shaded: removed)"
    axes.axhline(rows[0][score], color=OURS)
    return "decoder layer (shaded: removed, all at once)"


def _bars(rows: Rows, axes: Axes, score: str) -> None:
    colors = [REMOVED if row["removed"] else OURS for row in rows]
    axes.bar([row["layer"] for row in rows], [row[score] for row in rows], color=colors)


def _lines(rows: Rows, axes: Axes, score: str) -> None:
    """The later the round, the stronger its line."""
    num_rounds = rows[-1]["round"] + 1
    for number in range(num_rounds):
        part = [row for row in rows if row["round"] == number]
        gone = [row for row in part if row["removed"]]
        strength = 0.3 + 0.7 * (number + 1) / num_rounds
        axes.plot([row["layer"] for row in part], [row[score] for row in part], color=OURS, alpha=strength)
        axes.scatter([row["layer"] for row in gone], [row[score] for row in gone], color=REMOVED, zorder=3)


def _candidates(rows: Rows, axes: Axes) -> None:
    """What each way to meet a target lost; the least was taken."""
    best = min(row["kl_nats"] for row in rows)
    colors = [REMOVED if row["kl_nats"] == best else OURS for row in rows]
    axes.barh([row["way"] for row in rows], [row["kl_nats"] for row in rows], color=colors)
    axes.invert_yaxis()
    axes.set(xlabel=f"{KL} (orange: taken)")


def _sites(rows: Rows, axes: Axes) -> None:
    """Output errors of what was cut, layer by layer, beside those of the plain cut."""
    for linear, style in zip(sorted({row["linear"] for row in rows}), ("-", "--", ":", "-."), strict=False):
        part = [row for row in rows if row["linear"] == linear]
        layers = [row["layer"] for row in part]
        axes.plot(layers, [row["plain_error"] for row in part], style, color=THEIRS, label=f"{linear}, plain cut")
        axes.plot(layers, [row["error"] for row in part], style, color=OURS, label=linear)
    axes.set(xlabel="decoder layer", ylabel="‖Δy‖² / ‖y‖²", ylim=(0, None))
    axes.legend()


PANELS = {_layers: "removed", _candidates: "way", _sites: "plain_error"}
