"""What stays in 16 bits: enough of a layer, or the best of the model for its size, and only what engines take."""

import itertools
import json

import pytest
import torch
from test_quantize import kl, quantized
from test_resume import StopError, content, stop_after
from test_resume import quantized as resumed
from tiny import windows, write_internlm2

from compress.quantize.formats.int4 import format_named
from compress.quantize.grid import fit_grid, quantize
from compress.quantize.keep import CHOICES, Cost, kept_in_16_bits, module_names, saved_bytes
from compress.quantize.recipe import AwqRecipe
from compress.quantize.schemes import KeepByError, KeepBySize
from compress.quantize.sites import LINEARS

Q, K, V, OUT, GATE, UP, DOWN = LINEARS
BYTES = {Q: 100, K: 50, V: 50, OUT: 100, GATE: 300, UP: 300, DOWN: 300}


def layer(n=0, **errors):
    """The costs of a layer whose linears lose 0.01 each but for those named."""
    return [Cost(n, linear, errors.get(linear.rsplit(".", 1)[1], 0.01), BYTES[linear]) for linear in LINEARS]


def by_error(costs, most):
    return kept_in_16_bits(costs, KeepByError(by="error", most=most))


def by_size(costs, size_bytes):
    return kept_in_16_bits(costs, KeepBySize(by="size", most_megabytes=size_bytes / 1e6))


def left(costs, kept):
    return sum(cost.error for cost in costs if (cost.layer, cost.linear) not in kept)


def taken(costs, kept):
    return sum(cost.saved_bytes for cost in costs if (cost.layer, cost.linear) in kept)


def test_the_choices_are_those_that_the_engine_can_serve():
    legal = set()
    for count in range(len(LINEARS) + 1):
        for kept in map(frozenset, itertools.combinations(LINEARS, count)):
            together = len({Q, K, V} & kept) in (0, 3) and len({GATE, UP} & kept) in (0, 2)
            if together and (GATE not in kept or DOWN in kept):
                legal.add(kept)
    assert set(CHOICES) == legal
    assert len(CHOICES) == len(legal) == 12


def test_without_a_budget_nothing_is_kept():
    assert kept_in_16_bits(layer(down_proj=9.0), None) == frozenset()


def test_a_layer_within_its_error_budget_is_quantized_whole():
    assert by_error(layer(), 0.08) == frozenset()


def test_the_linear_that_loses_most_stays():
    assert by_error(layer(down_proj=0.5), 0.08) == {(0, DOWN)}
    assert by_error(layer(o_proj=0.5), 0.08) == {(0, OUT)}


def test_q_k_and_v_stay_together_and_gate_takes_up_and_down_along():
    assert by_error(layer(k_proj=0.5), 0.08) == {(0, Q), (0, K), (0, V)}
    assert by_error(layer(gate_proj=0.5), 0.08) == {(0, GATE), (0, UP), (0, DOWN)}


def test_of_what_is_enough_the_smallest_is_kept():
    costs = layer(o_proj=0.06, down_proj=0.06)  # either would do; o is a third of down
    assert by_error(costs, 0.12) == {(0, OUT)}


def test_layers_have_budgets_of_their_own():
    costs = layer(0) + layer(1, down_proj=0.5) + layer(2, o_proj=0.5, down_proj=0.5)
    kept = by_error(costs, 0.08)
    assert kept == {(1, DOWN), (2, OUT), (2, DOWN)}
    alone = frozenset().union(*(by_error([cost for cost in costs if cost.layer == n], 0.08) for n in range(3)))
    assert alone == kept  # so a walk may ask layer by layer


def test_no_budget_is_too_small():
    assert by_error(layer(), 1e-9) == {(0, linear) for linear in LINEARS}


def test_what_the_size_allows_goes_where_it_avoids_most():
    costs = layer(0, down_proj=0.5) + layer(1, o_proj=0.4) + layer(2, down_proj=0.3)
    assert by_size(costs, 99) == frozenset()
    assert by_size(costs, 100) == {(1, OUT)}
    assert by_size(costs, 400) == {(1, OUT), (0, DOWN)}
    assert by_size(costs, 700) == {(1, OUT), (0, DOWN), (2, DOWN)}


@pytest.mark.parametrize("seed", range(8))
def test_choices_are_legal_within_the_budget_and_monotonous(seed):
    generator = torch.Generator().manual_seed(seed)
    costs = [
        Cost(n, linear, float(torch.rand((), generator=generator) ** 4), BYTES[linear])
        for n in range(5) for linear in LINEARS
    ]  # fmt: skip
    before = None
    for size in (0.5, 300, 900, 2400, 6000):
        kept = by_size(costs, size)
        assert taken(costs, kept) <= size
        for n in range(5):
            assert frozenset(linear for layer, linear in kept if layer == n) in CHOICES
        assert before is None or left(costs, kept) <= before
        before = left(costs, kept)
    assert before == 0  # everything fits into 6000
    for most in (0.1, 0.5, 1.0):
        kept = by_error(costs, most)
        assert all(left([c for c in costs if c.layer == n], kept) <= most for n in range(5))


def test_names_come_in_the_order_of_the_model():
    names = module_names({(10, Q), (2, DOWN), (2, OUT)})
    assert names == [f"model.layers.2.{OUT}", f"model.layers.2.{DOWN}", f"model.layers.10.{Q}"]


@pytest.mark.parametrize("name", ["awq", "compressed-tensors"])
@pytest.mark.parametrize("group_size", [32, 128])
def test_saved_bytes_are_those_of_the_stored_tensors(name, group_size):
    W = torch.randn(64, 256)
    grid = fit_grid(W, 4, group_size)
    packed = format_named(name).pack_linear(quantize(W, grid), grid)
    packed.pop("weight_shape", None)  # two numbers
    assert saved_bytes(W.numel(), group_size) == 2 * W.numel() - sum(t.nbytes for t in packed.values())


# --- in the walk


def test_the_dearest_linears_stay_in_16_bits_and_the_model_reads_back(tmp_path):
    write_internlm2(tmp_path / "m")
    losses = {}
    for name, keep in {"all": None, "some": KeepBySize(by="size", most_megabytes=0.5)}.items():
        errors = quantized(tmp_path / "m", tmp_path / name, AwqRecipe(keep=keep), "internlm2")
        losses[name] = kl(tmp_path / name, tmp_path / "m", windows(8, seed=2))
    said = json.loads((tmp_path / "some" / "config.json").read_text())["quantization_config"]
    kept = {(error.layer, error.linear) for error in errors if error.error == 0}
    assert kept
    assert len(said["modules_to_not_convert"]) >= 1
    assert losses["some"] < losses["all"]
    smaller, larger = (
        sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("all", "some")
    )
    assert 0 < larger - smaller <= 0.5e6


def test_what_stays_in_16_bits_is_decided_once_also_when_the_run_is_killed(tmp_path, monkeypatch):
    write_internlm2(tmp_path / "m")
    recipe = AwqRecipe(keep=KeepByError(by="error", most=0.02))
    resumed(tmp_path / "m", tmp_path / "whole", recipe)
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        with pytest.raises(StopError):
            resumed(tmp_path / "m", tmp_path / "parts", recipe)
    resumed(tmp_path / "m", tmp_path / "parts", recipe)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
