"""One picture a variant of how it was made and one of what it lost; they go to MLflow with the numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, THEIRS, REMOVED = "#2f6db5", "#b9c4d0", "#d08a2e"
Rows = Sequence[dict[str, Any]]


def loss(rows: Rows, path: Path) -> None:
    """Distillation: the loss of every update, and of the held-out windows where they were measured."""
    figure, axes = _canvas()
    axes.plot([row["step"] for row in rows], [row["loss_nats"] for row in rows], color=OURS)
    measured = [row for row in rows if row.get("held_out_nats") is not None]
    axes.plot([row["step"] for row in measured], [row["held_out_nats"] for row in measured], "o-", color=REMOVED)
    axes.set(xlabel="step (orange: held-out windows)", ylabel="loss, a token", ylim=(0, None))
    _save(figure, path)


def linear_errors(rows: Rows, path: Path) -> None:
    """Quantization: each linear's relative output error, beside plain rounding's on the same inputs."""
    figure, axes = _canvas()
    places = range(len(rows))
    axes.bar(places, [row["nearest_error"] for row in rows], color=THEIRS, label="round to nearest")
    axes.bar(places, [row["error"] for row in rows], color=OURS, width=0.5, label="this variant")
    per_layer = sum(row["layer"] == 0 for row in rows)
    axes.set_xticks(list(places)[::per_layer], [row["layer"] for row in rows[::per_layer]])
    axes.set(xlabel="decoder layer; bars: q k v o gate up down", ylabel="‖Δy‖² / ‖y‖²")
    axes.legend()
    _save(figure, path)


def weight_errors(rows: Rows, path: Path) -> None:
    """Quantization without calibration: each weight's relative error."""
    figure, axes = _canvas()
    places = range(len(rows))
    axes.bar(places, [row["error"] for row in rows], color=OURS)
    per_layer = sum(row["layer"] == 0 for row in rows)
    axes.set_xticks(list(places)[::per_layer], [row["layer"] for row in rows[::per_layer]])
    axes.set(xlabel="decoder layer; bars: q k v o gate up down", ylabel="‖ΔW‖² / ‖W‖²")
    _save(figure, path)


def domains(by_domain: dict[str, dict[str, float]], path: Path) -> None:
    """Evaluation: the divergence from the base on each kind of text."""
    figure, axes = _canvas()
    axes.barh(list(by_domain), [metrics["kl_nats"] for metrics in by_domain.values()], color=OURS)
    axes.set(xlabel="KL from the base, nats a token")
    _save(figure, path)


def panels(draws: Sequence[Callable[[Axes], None]], path: Path) -> None:
    """Several panels, one above the other."""
    figure = Figure(figsize=(7, 3.5 * len(draws)), layout="constrained")
    for draw, axes in zip(draws, figure.subplots(len(draws), squeeze=False)[:, 0], strict=True):
        draw(axes)
    _save(figure, path)


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3, axis="both")
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nothing of the library's version in the file: equal numbers give equal bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
