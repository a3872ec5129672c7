"""Each ingredient of the quantizer on or off in params.yaml, with each way of rounding: what is stored is what was
computed, and what each linear lost is a number."""

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from test_resume import content
from tiny import windows
from tiny_repository import make_base

from compress.checkpoint.load import load_model
from compress.corpus import load_windows
from compress.quantize.sites import LINEARS
from compress.quantize.walk import _Walk
from pipelines.params import load
from pipelines.quantize import Task, make
from pipelines.stage import parent
from registry.manifest import verify

# As a user writes them behind `from: base, data: calibration`.
INGREDIENTS = {
    "all": "",
    "no scale": "scale: null",
    "no clip": "clip: null",
    "no feedback": "feedback: null",
    "none": "scale: null, clip: null, feedback: null",
    "kept by error": "keep: {by: error, most: 0.008}",
    "kept by size": "keep: {by: size, most_megabytes: 0.05}",
}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
ROUNDINGS = {
    "nearest": "{method: nearest}",
    "gptq": "{method: gptq, refine: 0}",
    "learned": "{method: learned, refine: 1, steps: 4, batch: 2, held_out: 2}",
}
TABLE = [(ingredients, rounding) for ingredients in INGREDIENTS for rounding in ROUNDINGS]


def key(ingredients, rounding):
    return f"{ingredients}-{rounding}".replace(", ", "-").replace(" ", "-")


def written(ingredients, rounding):
    """A variant as a line of params.yaml."""
    said = ["from: base", "data: calibration", INGREDIENTS[ingredients], f"rounding: {ROUNDINGS[rounding]}"]
    return yaml.safe_load(f"{{{', '.join(filter(None, said))}}}")


@dataclass(frozen=True)
class Made:
    """An artifact, what each layer was when the windows had gone through it, and what each linear lost."""

    folder: Path
    layers: dict[int, dict[str, torch.Tensor]]
    lost: dict[tuple[int, str], float]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every variant of the table, by its row."""
    sections = {"quantize": {key(*row): written(*row) for row in TABLE}}
    root = make_base(tmp_path_factory.mktemp("made"), 8, sections=sections, **SMALL)
    base, text, params = root / "models" / "base", load_windows(root / "data"), load(root)
    tensors = _Walk._tensors

    def remember(self, layer, linears, n):
        layers[n] = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
        return tensors(self, layer, linears, n)

    def keep(rows, _):
        lost.update({(row["layer"], row["linear"]): row["error"] for row in rows})

    every = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURBOPRESS_DEVICE", "cpu")
        patch.setattr(_Walk, "_tensors", remember)
        for row in TABLE:
            layers, lost = {}, {}
            task = Task(base, parent(base), params.quantize[key(*row)], text, key(*row))
            make(task, root / "models" / key(*row), keep)
            every[row] = Made(root / "models" / key(*row), layers, lost)
    return every


@pytest.mark.parametrize("row", TABLE, ids=lambda row: key(*row))
def test_what_is_stored_is_what_the_walk_computed_and_what_was_lost_is_a_number(made, row):
    variant, said = made[row], written(*row)
    model = load_model(variant.folder)
    assert variant.layers.keys() == set(range(len(model.model.layers)))
    for n, layer in enumerate(model.model.layers):
        stored = dict(layer.named_parameters())
        assert stored.keys() == variant.layers[n].keys()
        assert all(torch.equal(stored[name], weight) for name, weight in variant.layers[n].items())
    with torch.no_grad():
        assert model(windows(2, 16, seed=5)).logits.isfinite().all()
    assert all(math.isfinite(error) and 0 <= error < 1 for error in variant.lost.values())
    assert {linear for _, linear in variant.lost} == {*LINEARS, *(["layer"] if row[1] == "learned" else [])}
    assert any(variant.lost.values())
    assert (0 in variant.lost.values()) == ("keep" in said)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: key(*row))
def test_an_artifact_names_the_ingredients_that_were_asked_for(made, row):
    recipe, said = verify(made[row].folder).recipe, written(*row)
    for name in ("scale", "clip", "feedback", "keep"):
        is_on = name in said if name == "keep" else name not in said
        assert (recipe[name] is not None) == is_on
    assert recipe["rounding"].items() >= said["rounding"].items()


def test_no_two_of_them_are_the_same_model(made):
    """An ingredient that is turned off in the file alone would not show otherwise."""
    weights = {row: stored_weights(variant.folder) for row, variant in made.items()}
    assert [pair for pair in combinations(TABLE, 2) if weights[pair[0]] == weights[pair[1]]] == []


def stored_weights(folder):
    return {name: file for name, file in content(folder).items() if name.endswith(".safetensors")}
