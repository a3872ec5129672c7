"""A target is met by the mix that loses least, measured on windows that nothing was fitted to."""

import pytest
from test_width import WIDE, ids, source

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.prune.budget import decode_bytes, decoder_parameters, share
from compress.prune.leave_out import LeaveOut
from compress.prune.mix import ways
from compress.prune.prune import Work, decide, write
from compress.prune.recipe import LatencyTarget, MixRecipe, ParametersTarget
from compress.prune.text import Text
from compress.quantize.resources import Resources

DEEP = WIDE | {"num_hidden_layers": 4}


def mix(**target):
    return MixRecipe(method="mix", target=target, windows=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return source(tmp_path_factory.mktemp("mix") / "m", config=DEEP)


def test_decoder_parameters_are_the_weights_of_the_layers(model):
    checkpoint = Checkpoint(model)
    tensors = [checkpoint.tensor(name) for n in range(4) for name in checkpoint.layer_names(n)]
    counted = sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)
    assert 0.99 * sum(tensor.numel() for tensor in tensors) < counted
    assert decoder_parameters(checkpoint.config) == counted


def test_a_decoded_token_reads_weights_head_and_cache(model):
    config = Checkpoint(model).config
    cache = 4 * 2 * 2048 * 2 * 64  # layers, keys and values, tokens, kv heads, channels
    assert decode_bytes(config) == 2 * (decoder_parameters(config) + 128 * 256 + cache)
    fewer = config.replace(num_hidden_layers=2)
    assert share(fewer, config, ParametersTarget(parameters=0.5)) == 0.5
    assert 0.5 < share(fewer, config, LatencyTarget(latency=0.5)) < 0.52  # the head stays


@pytest.mark.parametrize("target", [{"parameters": 0.75}, {"parameters": 0.5}, {"latency": 0.8}], ids=str)
def test_every_way_meets_the_target_with_all_the_channels_that_it_leaves(model, target):
    config, recipe = Checkpoint(model).config, mix(**target)
    found = ways(config, recipe, "here")
    (most,) = target.values()
    assert len(found) == len({str(way) for way in found}) >= 3
    assert all(way.share <= most for way in found)
    assert {way.remove_layers > 0 for way in found} == {True, False}
    assert any(str(way).startswith("−") for way in found)


@pytest.mark.parametrize("target", [{"parameters": 0.75}], ids=str)
def test_the_way_that_loses_least_is_taken_and_the_result_meets_the_target(model, tmp_path, target):
    recipe, checkpoint = mix(**target), Checkpoint(model)
    work = Work(checkpoint, Text(ids()), Resources(), "here")
    decision = decide(work, recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(decision.candidates) == len(ways(checkpoint.config, recipe, "here"))
    best = min(decision.candidates, key=lambda candidate: candidate.kl_nats)
    assert decision.sizes == best.way.sizes
    assert len(decision.removed) == best.way.remove_layers
    (tmp_path / "p").mkdir()
    write(work, recipe, decision, ModelWriter(tmp_path / "p", decision.config, "llama"))
    made = Checkpoint(tmp_path / "p").config
    (most,) = target.values()
    assert share(made, checkpoint.config, recipe.target) == best.way.share <= most


def test_windows_that_rank_the_candidates_have_not_chosen_their_layers(model, tmp_path, monkeypatch):
    chose, ranked = set(), set()
    kl_nats, kl_of = LeaveOut.kl_nats, LeaveOut.kl_of

    def choosing(self, trunk, choices):
        chose.update(map(tuple, self.tokens.tolist() if choices else []))
        return kl_nats(self, trunk, choices)

    def ranking(self, candidate):
        ranked.update(map(tuple, self.tokens.tolist()))
        return kl_of(self, candidate)

    monkeypatch.setattr(LeaveOut, "kl_nats", choosing)
    monkeypatch.setattr(LeaveOut, "kl_of", ranking)
    decide(Work(Checkpoint(model), Text(ids()), Resources(), "here"), mix(parameters=0.75), tmp_path)
    assert len(chose) == len(ranked) == 4
    assert not chose & ranked


def test_a_target_that_no_way_meets_is_refused(model):
    with pytest.raises(CompressError, match=r"^prune\.x\.target: 0\.01 of the source's cannot be met .* ask for more"):
        ways(Checkpoint(model).config, mix(parameters=0.01), "prune.x")


def test_windows_to_fit_to_must_be_left(model, tmp_path):
    work = Work(Checkpoint(model), Text(ids(4)), Resources(), "prune.x")
    with pytest.raises(
        CompressError, match=r"^prune\.x\.windows: 4 windows to measure on, of 4 .* leave some to fit to"
    ):
        decide(work, mix(parameters=0.75), tmp_path)
