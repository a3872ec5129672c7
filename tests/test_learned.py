"""Learned rounding: what it starts from, what it keeps, what it wins."""

import pytest
import torch
from test_resume import LEARNED, quantized
from tiny import windows, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.quantize.grid import Grid, dequantize, fit_grid, quantize
from compress.quantize.learned import Latent, learn
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.sites import LINEARS
from compress.quantize.stepper import Lesson
from compress.quantize.walk import quantize_model
from compress.quantize.workers import ALONE


@pytest.fixture
def problem(tmp_path):
    """A layer, its latents after plain rounding, its inputs and the outputs of the float layer."""
    write_internlm2(tmp_path / "m")
    runner = LayerRunner(Checkpoint(tmp_path / "m"), "cpu", 8)
    layer, latents = runner.load(0), {}
    h = runner.embed(windows(24))
    y = runner.run(layer, h)
    for name in LINEARS:
        W = layer.get_parameter(f"{name}.weight").data
        grid = fit_grid(W, 4, 128)
        q = quantize(W, grid)
        lean = (W.unflatten(1, (-1, 128)) / grid.scales[..., None] + grid.zeros[..., None]).flatten(1) - q
        latents[name] = Latent.start(q, lean, grid)
    return layer, latents, Lesson(h, y, torch.ones(*h.shape[:2], 1)), runner.rope(h)


def test_latents_start_at_the_codes_they_are_given():
    W = torch.randn(8, 256)
    grid = fit_grid(W, 4, 128)
    q = quantize(W, grid)
    lean = torch.randn(8, 256) * 3
    lean[0, 0] = float("nan")
    codes, returned = Latent.start(q, lean, grid).codes()
    assert torch.equal(codes, q)
    assert torch.equal(returned.scales, grid.scales)


def test_the_weight_that_is_trained_is_the_one_that_is_stored():
    W = torch.randn(8, 256)
    latent = Latent.start(quantize(W, grid := fit_grid(W, 4, 128)), torch.zeros(8, 256), grid)
    latent.a.mul_(1.037)
    assert torch.equal(latent.weight(torch.float32), dequantize(*latent.codes()))


def test_a_step_moves_latents_and_scales_against_the_sign_of_the_gradient():
    grid = Grid(torch.ones(1, 1), torch.full((1, 1), 8.0), 4, 32)
    latent = Latent.start(torch.full((1, 32), 9, dtype=torch.uint8), torch.zeros(1, 32), grid)
    gradient = torch.full((1, 32), -2.0)
    gradient[0, 0] = 5.0
    latent.move_(gradient, torch.tensor(0.1), torch.tensor(0.01))
    assert latent.u[0, 0] == pytest.approx(8.9)
    assert latent.u[0, 1] == pytest.approx(9.1)
    assert latent.a.item() == pytest.approx(1.01)


def test_learning_lowers_the_error_on_windows_that_it_was_not_trained_on(problem):
    recipe = Learned(method="learned", steps=60, batch=8, learning_rate=0.01, held_out=8)
    learning = learn(*problem, recipe, 0, ALONE)
    assert learning.error < 0.9 * learning.start_error


def test_when_no_step_helps_the_start_is_kept(problem):
    layer, latents, lesson, rope = problem
    before = {name: latent.codes()[0] for name, latent in latents.items()}
    hopeless = Learned(method="learned", steps=8, learning_rate=0.5, scale_rate=0.5, held_out=8)
    learning = learn(layer, latents, lesson, rope, hopeless, 0, ALONE)
    assert learning.error == learning.start_error
    assert all(torch.equal(before[name], q) for name, (q, _) in learning.linears.items())


def test_tokens_that_do_not_count_teach_nothing(problem):
    layer, latents, lesson, rope = problem
    counts = lesson.counts.clone()
    counts[:, ::2] = 0
    spoiled = lesson.y + (1 - counts) * 1e3
    starts = [
        {n: Latent.start(lat.codes()[0], torch.zeros_like(lat.u), lat.grid) for n, lat in latents.items()} for _ in "ab"
    ]
    lessons = Lesson(lesson.h, lesson.y, counts), Lesson(lesson.h, spoiled, counts)
    pairs = zip(starts, lessons, strict=True)
    first, second = (learn(layer, start, given, rope, LEARNED.rounding, 5, ALONE) for start, given in pairs)
    assert first.error == second.error
    assert all(torch.equal(first.linears[name][0], second.linears[name][0]) for name in LINEARS)


def test_equal_seeds_give_equal_codes_and_the_layer_stays_as_it_was(problem):
    layer, latents, *rest = problem
    weights = {name: parameter.clone() for name, parameter in layer.named_parameters()}
    starts = [
        {n: Latent.start(lat.codes()[0], torch.zeros_like(lat.u), lat.grid) for n, lat in latents.items()} for _ in "ab"
    ]
    first, second = (learn(layer, start, *rest, LEARNED.rounding, 5, ALONE) for start in starts)
    assert all(torch.equal(first.linears[name][0], second.linears[name][0]) for name in LINEARS)
    assert all(torch.equal(weights[name], parameter) for name, parameter in layer.named_parameters())


def test_one_window_cannot_both_be_trained_on_and_choose(tmp_path):
    write_internlm2(tmp_path / "m")
    checkpoint = Checkpoint(tmp_path / "m")
    writer = ModelWriter(tmp_path, checkpoint.config.replace(torch_dtype="float16"), "llama")
    with pytest.raises(CompressError, match=r"learned trains on some .* there is 1; give more calibration windows"):
        quantize_model(checkpoint, windows(1), LEARNED, writer)


def test_learned_rounding_says_what_each_layer_won(tmp_path):
    write_internlm2(tmp_path / "m")
    rows = [row for row in quantized(tmp_path / "m", tmp_path / "q", LEARNED) if row.linear == "layer"]
    assert [row.layer for row in rows] == [0, 1, 2]
    assert all(0 < row.error <= row.nearest_error for row in rows)
    assert AwqRecipe().rounding.method == "gptq"
