"""What a trace says of the layers that went, in rows and in the picture: one at a time, a run, or those of a list."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from tiny import CONFIG

from compress.checkpoint.config import parse_config
from compress.prune.depth import Round
from compress.prune.prune import Decision
from compress.prune.recipe import DepthRecipe
from pipelines.plots import OURS, REMOVED
from pipelines.prune import rows
from pipelines.pruned_plots import pruning

TRACES = {
    "layer by layer": (
        {"remove_layers": 2, "score": "kl"},
        [Round({(0,): 0.3, (1,): 0.1, (2,): 0.2}, (1,)), Round({(0,): 0.4, (2,): 0.5}, (0,))],
        [
            {"round": 0, "layer": 0, "kl_nats": 0.3, "removed": False},
            {"round": 0, "layer": 1, "kl_nats": 0.1, "removed": True},
            {"round": 0, "layer": 2, "kl_nats": 0.2, "removed": False},
            {"round": 1, "layer": 0, "kl_nats": 0.4, "removed": True},
            {"round": 1, "layer": 2, "kl_nats": 0.5, "removed": False},
        ],
    ),
    "run": (
        {"remove_layers": 2, "contiguous": True},
        [Round({(0, 1): 0.3, (1, 2): 0.2, (2, 3): 0.1}, (2, 3))],
        [
            {"round": 0, "layer": 0, "layers": [0, 1], "influence": 0.3, "removed": False},
            {"round": 0, "layer": 1, "layers": [1, 2], "influence": 0.2, "removed": False},
            {"round": 0, "layer": 2, "layers": [2, 3], "influence": 0.1, "removed": True},
        ],
    ),
    "listed, by influence": (
        {"remove_layers": [2, 0]},
        [Round({(0,): 0.3, (1,): 0.1, (2,): 0.2}, (0, 2))],
        [
            {"round": 0, "layer": 0, "influence": 0.3, "removed": True},
            {"round": 0, "layer": 1, "influence": 0.1, "removed": False},
            {"round": 0, "layer": 2, "influence": 0.2, "removed": True},
        ],
    ),
    "listed, by kl": (
        {"remove_layers": [2, 0], "score": "kl"},
        [Round({(0, 2): 0.7}, (0, 2))],
        [{"round": 0, "layer": 0, "layers": [0, 2], "kl_nats": 0.7, "removed": True}],
    ),
}


@pytest.mark.parametrize("case", TRACES)
def test_a_score_is_of_the_layer_of_its_row_or_of_several_that_it_names(case):
    said, rounds, expected = TRACES[case]
    recipe = DepthRecipe(method="depth", **said)
    assert rows(recipe, Decision(parse_config(CONFIG, "here"), (), {}, rounds), []) == expected


@pytest.mark.parametrize(
    ("case", "bars", "shaded", "axis"),
    [
        ("run", {0: OURS, 1: OURS, 2: REMOVED}, {2, 3}, "first layer of the run (orange: taken; shaded: removed)"),
        ("listed, by kl", {}, {0, 2}, "decoder layer (shaded: removed, all at once)"),
        ("listed, by influence", {0: REMOVED, 1: OURS, 2: REMOVED}, set(), "decoder layer (orange: removed)"),
    ],
)
def test_the_picture_marks_the_run_that_was_taken_and_shades_the_layers_that_went_at_once(
    monkeypatch, tmp_path, case, bars, shaded, axis
):
    (axes,) = drawn(monkeypatch, TRACES[case][2], tmp_path)
    found = [bar for container in axes.containers for bar in container]
    assert {round(bar.get_x() + 0.4): to_hex(bar.get_facecolor()) for bar in found} == bars
    assert {round(span.get_x() + 0.5) for span in axes.patches if span not in found} == shaded
    assert axes.get_xlabel() == axis


def drawn(monkeypatch, rows, folder):
    """The axes of a trace's picture."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *said, **more: figures.append(self) or save(self, *said, **more)
    )
    pruning(rows, folder / "trace.png")
    return figures[0].axes
