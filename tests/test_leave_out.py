"""Layers go by the measured rise of KL, which is what it is said to be: the divergence of the model without them."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIG, internlm2_tensors, windows, write_config, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.evaluate.compare import compare_models
from compress.prune.depth import by_influence, by_kl, layers_of, write_without
from compress.prune.leave_out import LeaveOut
from compress.prune.recipe import DepthRecipe
from compress.prune.text import Text
from compress.quantize.resources import Resources

FOUR = CONFIG | {"num_hidden_layers": 4, "vocab_size": 128}
NONE = frozenset()


def ids(count=3, length=16):
    return windows(count, length, 128)


def measure(folder, text=None, **resources):
    return LeaveOut(Checkpoint(folder), text or Text(ids()), Resources(**resources))


def kl_without(folder, out, removed, counted=None):
    """The same by another way: a model without the layers is written, and both are loaded whole."""
    checkpoint = Checkpoint(folder)
    out.mkdir()
    config = checkpoint.config.replace(num_hidden_layers=checkpoint.config.num_layers - len(removed))
    write_without(checkpoint, removed, ModelWriter(out, config, "llama"))
    return compare_models(load_model(out), load_model(folder), ids(), counted=counted).means()["kl_nats"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_internlm2(folder, FOUR)
    return folder


@pytest.mark.parametrize("trunk", [[], [2], [0, 3]], ids=str)
def test_each_score_is_the_divergence_of_the_model_without_that_layer(model, tmp_path, trunk):
    left = [n for n in range(4) if n not in trunk]
    scores = measure(model).kl_nats(frozenset(trunk), [frozenset([n]) for n in left])
    expected = [kl_without(model, tmp_path / str(n), sorted([*trunk, n])) for n in left]
    assert scores == pytest.approx(expected, rel=1e-4)
    assert len({round(score, 4) for score in scores}) == len(left)


def test_only_positions_whose_answer_counts_are_scored(model, tmp_path):
    predicts = torch.zeros(3, 16, dtype=torch.bool)
    predicts[:, 3:9] = True
    (score,) = measure(model, Text(ids(), None, predicts)).kl_nats(NONE, [frozenset([1])])
    assert score == pytest.approx(kl_without(model, tmp_path / "p", [1], predicts), rel=1e-4)
    assert score != pytest.approx(measure(model).kl_nats(NONE, [frozenset([1])])[0], rel=1e-3)


def test_layers_are_scored_again_after_each_removal(model):
    leave_out = measure(model)
    first, second = by_kl(leave_out, 2, "here")
    assert set(first.scores) == {(0,), (1,), (2,), (3,)}
    (gone,) = first.removed
    assert first.scores[first.removed] == min(first.scores.values())
    left = [n for n in range(4) if n != gone]
    assert list(second.scores) == [(n,) for n in left]
    assert list(second.scores.values()) == leave_out.kl_nats(frozenset([gone]), [frozenset([n]) for n in left])
    assert layers_of([first, second]) == sorted({gone, *second.removed})


def test_greedy_removal_sees_what_influence_cannot(tmp_path):
    """Two layers undo each other: each alone changes much, and the second matters only while the first is there."""
    tensors = internlm2_tensors(FOUR)
    for n in (1, 2):
        tensors[f"model.layers.{n}.attention.wo.weight"].zero_()
        tensors[f"model.layers.{n}.feed_forward.w2.weight"].zero_()
    write_config(tmp_path / "m", FOUR)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    rounds = by_kl(measure(tmp_path / "m"), 2, "here")
    assert layers_of(rounds) == [1, 2]
    assert rounds[1].scores[rounds[1].removed] == pytest.approx(0, abs=1e-6)


def test_contiguous_layers_are_the_best_run_of_neighbours(model, tmp_path):
    (only,) = by_kl(measure(model), 2, "here", contiguous=True)
    expected = {(n, n + 1): kl_without(model, tmp_path / str(n), [n, n + 1]) for n in range(3)}
    assert only.scores == pytest.approx(expected, rel=1e-4)
    assert only.removed == min(expected, key=lambda run: expected[run])


def test_contiguous_influence_is_that_of_the_whole_run(model):
    recipe = DepthRecipe(method="depth", remove_layers=2, contiguous=True)
    (only,) = by_influence(Checkpoint(model), Text(ids()), recipe, "here")
    seen = []
    loaded = load_model(model)
    for layer in loaded.model.layers:
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    with torch.no_grad():
        loaded(ids())
    pairs = [(seen[n][0], seen[n + 1][1]) for n in range(3)]
    expected = [1 - ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean().item() for a, b in pairs]
    assert list(only.scores) == [(0, 1), (1, 2), (2, 3)]
    assert list(only.scores.values()) == pytest.approx(expected, abs=1e-5)
    assert only.removed == (expected.index(min(expected)), expected.index(min(expected)) + 1)


@pytest.mark.parametrize("score", ["influence", "kl"])
def test_layers_said_by_number_go(model, score):
    recipe = DepthRecipe(method="depth", remove_layers=[3, 0], score=score)
    if score == "kl":
        rounds = by_kl(measure(model), recipe.remove_layers, "here")
    else:
        rounds = by_influence(Checkpoint(model), Text(ids()), recipe, "here")
    assert layers_of(rounds) == [0, 3]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (4, r"^prune\.x\.remove_layers: 4 of 4 layers; leave at least one"),
        ([0, 1, 2, 3], r"^prune\.x\.remove_layers: 4 of 4 layers; leave at least one"),
        ([4], r"^prune\.x\.remove_layers: no layer 4, there are 0 to 3"),
    ],
)
def test_layers_that_are_not_there_are_refused(model, removed, message):
    with pytest.raises(CompressError, match=message):
        by_kl(measure(model), removed, "prune.x")


def overflowing(folder, layer):
    tensors = internlm2_tensors(FOUR)
    tensors[f"model.layers.{layer}.feed_forward.w2.weight"].fill_(3e38)
    write_config(folder, FOUR)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_activations_that_are_no_numbers_have_no_divergence(tmp_path, gone):
    """Of scores that are none any would be the least. It is the whole model's layer also where that one goes."""
    reason = r"^layers\.1: activations leave the range of torch\.float32; set TURBOPRESS_DEVICE=cpu"
    with pytest.raises(CompressError, match=reason):
        measure(overflowing(tmp_path / "m", 1)).kl_nats(NONE, [frozenset([gone])])


def test_a_candidate_whose_activations_are_no_numbers_is_refused(model, tmp_path):
    with pytest.raises(CompressError, match=r"^layers\.2: activations leave the range of torch\.float32"):
        measure(model).kl_of(Checkpoint(overflowing(tmp_path / "m", 2)))


def test_a_walk_reads_each_layer_once_and_holds_one(model, monkeypatch):
    held, loads = set(), []
    load, release = LayerRunner.load, LayerRunner.release

    def loading(self, n):
        held.add(n)
        assert len(held) == 1
        loads.append(n)
        return load(self, n)

    monkeypatch.setattr(LayerRunner, "load", loading)
    monkeypatch.setattr(LayerRunner, "release", lambda self, n: held.remove(n) or release(self, n))
    measure(model).kl_nats(NONE, [frozenset([n]) for n in range(4)])
    assert loads == [0, 1, 2, 3]
    assert held == set()


@pytest.mark.parametrize("resources", [{"batch": 2}, {"prefetch": False}, {"disk": True}], ids=str)
def test_where_windows_wait_and_in_which_batches_changes_no_score(model, tmp_path, resources):
    resources = {"disk": tmp_path} if "disk" in resources else resources
    choices = [frozenset([n]) for n in range(4)]
    usual = measure(model).kl_nats(NONE, choices)
    assert measure(model, **resources).kl_nats(NONE, choices) == pytest.approx(usual, rel=1e-5)
