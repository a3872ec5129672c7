"""The quantizer's parts, each against what it promises."""

import pytest
import torch
from calibration import correlated_inputs, statistics_of

from compress.errors import CompressError
from compress.quantize import clip
from compress.quantize.clip import diagonal_blocks, search_clip
from compress.quantize.factor import damp_, factorize
from compress.quantize.feedback import aimed
from compress.quantize.formats.awq import NIBBLES, pack, pack_linear, unpack, unpack_linear
from compress.quantize.gptq import gptq
from compress.quantize.grid import Grid, dequantize, fit_grid, nearest, quantize
from compress.quantize.recipe import AwqRecipe, ClipSearch
from compress.quantize.refine import descend, fit_scales, leans, refine
from compress.quantize.scale import search_scale
from compress.quantize.statistics import Accumulator, output_error


@pytest.fixture
def problem():
    """A weight, its inputs and their statistics."""
    x = correlated_inputs()
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) / 16
    return W, x, statistics_of(x)


def damped(H, damping):
    H = H.clone()
    damp_(H, damping)
    return H


def rounded(W, H, grid, place="here"):
    return gptq(W, factorize(H, place), grid)


# --- the grid and its storage


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_no_weight_is_further_from_the_grid_than_half_a_step(group_size):
    W = torch.randn(16, 256)
    grid = fit_grid(W, 4, group_size)
    steps = grid.scales.repeat_interleave(group_size, 1)
    # Half a step, and what rounding the scale to float16 and the zero to a whole number may move the range's ends.
    assert ((nearest(W, grid) - W).abs() <= 1.05 * steps).all()
    assert torch.equal(grid.scales, grid.scales.half().float())


def test_dequantized_codes_are_the_nearest_points():
    W = torch.randn(16, 256)
    grid = fit_grid(W, 4, 128)
    assert torch.allclose(dequantize(quantize(W, grid), grid), nearest(W, grid), atol=1e-7)


def test_groups_of_zeros_stay_zeros():
    W = torch.zeros(8, 128)
    assert torch.equal(nearest(W, fit_grid(W, 4, 128)), W)


@pytest.mark.parametrize(("rows", "columns"), [(8, 1), (64, 128), (24, 384), (1000, 3)])
def test_pack_then_unpack_is_identity(rows, columns):
    q = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    packed = pack(q)
    assert packed.dtype == torch.int32
    assert packed.shape == (columns, rows // 8)
    assert torch.equal(unpack(packed), q)


def test_packed_nibbles_lie_where_awq_puts_them():
    q = torch.arange(8, dtype=torch.uint8)[:, None] + 3
    (word,) = pack(q).flatten().tolist()
    assert [(word >> (4 * i)) & 15 for i in range(8)] == [3 + output for output in NIBBLES]
    assert NIBBLES == (0, 2, 4, 6, 1, 3, 5, 7)


def test_a_stored_linear_comes_back_exactly():
    W = torch.randn(64, 256)
    grid = fit_grid(W, 4, 128)
    q, returned = unpack_linear(pack_linear(quantize(W, grid), grid))
    assert torch.equal(dequantize(q, returned), dequantize(quantize(W, grid), grid))
    assert returned.group_size == 128


# --- statistics


def test_gram_is_the_same_in_one_batch_or_many():
    x, x_float, drift = correlated_inputs(), correlated_inputs(seed=3), torch.randn(512, 96)
    whole, parts = Accumulator(), Accumulator()
    whole.add(x, x_float, drift)
    for part in zip(x.split(100), x_float.split(100), drift.split(100), strict=True):
        parts.add(*part)
    once, added = whole.means(), parts.means()
    assert torch.allclose(once.H, x.t() @ x / len(x), rtol=1e-4, atol=1e-3)
    assert torch.equal(once.H, once.H.t())
    for name in ("H", "magnitude", "D", "R"):
        assert torch.allclose(getattr(once, name), getattr(added, name), rtol=1e-4, atol=1e-3)


def test_scaled_statistics_are_those_of_the_scaled_input():
    x, x_float, drift = correlated_inputs(), correlated_inputs(seed=3), torch.randn(512, 96)
    s = torch.rand(256) + 0.5
    scaled, direct = statistics_of(x, x_float, drift), statistics_of(x / s, x_float / s, drift)
    scaled.scale_(s)
    for name in ("H", "magnitude", "D", "R"):
        assert torch.allclose(getattr(scaled, name), getattr(direct, name), rtol=1e-3, atol=1e-3)


def test_output_error_is_the_error_of_the_outputs(problem):
    W, x, statistics = problem
    delta = nearest(W, fit_grid(W, 4, 128)) - W
    direct = (x @ delta.T).pow(2).mean(0)
    assert torch.allclose(output_error(delta, statistics.H), direct, rtol=1e-3)


def test_diagonal_blocks_are_the_blocks_of_each_group():
    H = torch.randn(256, 256)
    blocks = diagonal_blocks(H, 64)
    assert torch.equal(blocks[2], H[128:192, 128:192])


# --- the searches


def error_of(W, H, grid):
    return output_error(nearest(W, grid) - W, H).sum()


def test_searched_scales_have_less_error_than_none(problem):
    W, _, statistics = problem
    recipe = AwqRecipe()
    s = search_scale(W, statistics, recipe, 20, lambda s: s)
    scaled = W * s
    found = output_error((nearest(scaled, fit_grid(scaled, 4, 128)) - scaled) / s, statistics.H).sum()
    assert found < 0.8 * error_of(W, statistics.H, fit_grid(W, 4, 128))


def test_dead_channels_get_a_scale_that_is_a_number():
    x = correlated_inputs()
    x[:, :128] = 0
    W = torch.randn(64, 256)
    W[:, 5] = 0
    s = search_scale(W, statistics_of(x), AwqRecipe(), 20, lambda s: s)
    assert torch.isfinite(s).all()
    assert (s > 0).all()


def test_searched_clipping_has_less_error_than_none(problem):
    W, _, statistics = problem
    W = W.clone()
    W[:, 7] *= 6  # an outlier that sets the step of its group
    grid = search_clip(W, statistics.H, 4, 128, ClipSearch(points=20, least=0.5))
    assert error_of(W, statistics.H, grid) < 0.9 * error_of(W, statistics.H, fit_grid(W, 4, 128))


def test_shrink_factors_tried_together_are_those_tried_one_by_one(problem, monkeypatch):
    W, _, statistics = problem
    together = search_clip(W, statistics.H, 4, 128, ClipSearch(points=20, least=0.5))
    monkeypatch.setattr(clip, "ENTRIES_AT_ONCE", 1)
    one_by_one = search_clip(W, statistics.H, 4, 128, ClipSearch(points=20, least=0.5))
    assert torch.equal(together.scales, one_by_one.scales)
    assert torch.equal(together.zeros, one_by_one.zeros)


def test_compensated_rounding_has_less_error_than_nearest(problem):
    W, _, statistics = problem
    grid = fit_grid(W, 4, 128)
    q = rounded(W, damped(statistics.H, 0.01), grid)
    assert output_error(dequantize(q, grid) - W, statistics.H).sum() < 0.7 * error_of(W, statistics.H, grid)


def test_compensated_rounding_without_correlation_is_nearest_rounding():
    W = torch.randn(32, 256)
    grid = fit_grid(W, 4, 128)
    assert torch.equal(rounded(W, torch.eye(256), grid), quantize(W, grid))


def test_a_gram_that_is_no_gram_is_refused_with_place_and_remedy():
    with pytest.raises(CompressError, match=r"layers\.3\.mlp: Gram matrix is singular; raise damping"):
        factorize(-torch.eye(128), "layers.3.mlp")


def test_dead_channels_do_not_make_the_gram_singular():
    x = correlated_inputs()
    x[:, :64] = 0
    W = torch.randn(32, 256)
    grid = fit_grid(W, 4, 128)
    q = rounded(W, damped(statistics_of(x).H, 0.01), grid)
    assert torch.equal(q[:, :64], quantize(W, grid)[:, :64])


# --- refinement


def test_neither_step_of_refinement_raises_the_error(problem):
    W, _, statistics = problem
    H, grid = damped(statistics.H, 0.01), fit_grid(W, 4, 64)
    q = rounded(W, H, grid)

    def error(q, grid):
        return output_error(dequantize(q, grid) - W, H)

    fitted = fit_scales(W, H, q, grid)
    assert error(q, fitted).sum() < error(q, grid).sum()
    moved = descend(W, H, q, fitted)
    assert (error(moved, fitted) <= error(q, fitted) * 1.0001).all()
    assert not torch.equal(moved, q)
    again, finer = refine(W, H, q, grid, 3)
    assert error(again, finer).sum() < error(moved, fitted).sum()


def test_a_fitted_scale_is_the_best_of_its_group_when_nothing_follows():
    """The last group's scale has no later one to make it stale."""
    W, H = torch.randn(3, 256), statistics_of(correlated_inputs()).H
    grid = fit_grid(W, 4, 128)
    q = quantize(W, grid)
    fitted = fit_scales(W, H, q, grid).scales
    least = output_error(dequantize(q, Grid(fitted, grid.zeros, 4, 128)) - W, H)
    for change in (0.99, 1.01):
        other = fitted.clone()
        other[:, 1] *= change
        assert (output_error(dequantize(q, Grid(other, grid.zeros, 4, 128)) - W, H) > least).all()


def test_a_code_leans_to_where_its_error_would_be_least():
    W, H = torch.randn(8, 256), statistics_of(correlated_inputs()).H
    grid = fit_grid(W, 4, 128)
    q = quantize(W, grid)
    lean, column = leans(W, H, q, grid), 17
    moved = dequantize(q, grid)
    moved[:, column] += (lean * grid.scales.repeat_interleave(128, 1))[:, column]
    least = output_error(moved - W, H)
    for change in (-0.01, 0.01):
        other = moved.clone()
        other[:, column] += change
        assert (output_error(other - W, H) > least).all()


# --- feedback


def test_feedback_aims_at_what_the_float_model_would_have_computed():
    x_float = correlated_inputs(2048)
    x = x_float + 0.3 * torch.randn(2048, 256) @ torch.randn(256, 256) / 16
    drift = torch.randn(2048, 64) * 0.1 + x[:, :64] * 0.2
    W, statistics = torch.randn(64, 256) / 16, statistics_of(x, x_float, drift)

    def miss(V):
        return (x @ V.T - x_float @ W.T - drift).pow(2).mean()

    factor = factorize(damped(statistics.H, 1e-4), "here")
    whole, half = (aimed(W, statistics.D, statistics.R, factor, share) for share in (1.0, 0.5))
    assert miss(whole) < miss(half) < miss(W)
    best = torch.linalg.lstsq(x, x_float @ W.T + drift).solution.T
    assert miss(whole) < 1.01 * miss(best)


def test_where_nothing_has_moved_feedback_changes_nothing():
    W = torch.randn(64, 256)
    statistics = statistics_of(correlated_inputs(), drift=torch.zeros(512, 64))
    factor = factorize(damped(statistics.H, 0.1), "here")
    assert torch.equal(aimed(W, statistics.D, statistics.R, factor, 1.0), W)
