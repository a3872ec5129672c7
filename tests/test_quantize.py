"""The quantizer's parts, each against what it promises, and the walk on a whole small model."""

import pytest
import torch
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model, unpacked
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.quantize.clip import diagonal_blocks, search_clip
from compress.quantize.gptq import gptq
from compress.quantize.grid import dequantize, fit_grid, nearest, quantize
from compress.quantize.packing import NIBBLES, pack, pack_linear, unpack, unpack_linear
from compress.quantize.recipe import AwqRecipe, ClipSearch, Gptq, Nearest, ScaleSearch
from compress.quantize.scale import search_scale
from compress.quantize.sites import LINEARS, SITES, fold_, joined_weight, tie_for
from compress.quantize.statistics import Collector, InputStatistics, output_error
from compress.quantize.walk import quantize_model

PLAIN = AwqRecipe(scale=None, clip=None, rounding=Nearest(method="nearest"))


def correlated_inputs(tokens=512, channels=256, seed=0):
    """Activations like a language model's: correlated, and a few channels much larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator) / channels**0.5
    x = torch.randn(tokens, channels, generator=generator) @ (torch.eye(channels) + mix)
    x[:, ::29] *= 12
    return x


@pytest.fixture
def problem():
    """A weight, its inputs and their statistics."""
    x = correlated_inputs()
    statistics = InputStatistics()
    statistics.add_(x)
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) / 16
    return W, x, statistics


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
    x = correlated_inputs()
    whole, parts = InputStatistics(), InputStatistics()
    whole.add_(x)
    for part in x.split(100):
        parts.add_(part)
    assert torch.allclose(whole.H, parts.H, rtol=1e-4, atol=1e-4)
    assert whole.num_tokens == parts.num_tokens == 512


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
    s = search_scale(W, statistics.H, statistics.magnitude, recipe, ScaleSearch(points=20), lambda s: s)
    scaled = W * s
    found = output_error((nearest(scaled, fit_grid(scaled, 4, 128)) - scaled) / s, statistics.H).sum()
    assert found < 0.8 * error_of(W, statistics.H, fit_grid(W, 4, 128))


def test_dead_channels_get_a_scale_that_is_a_number():
    x = correlated_inputs()
    x[:, :128] = 0
    statistics = InputStatistics()
    statistics.add_(x)
    W = torch.randn(64, 256)
    W[:, 5] = 0
    s = search_scale(W, statistics.H, statistics.magnitude, AwqRecipe(), ScaleSearch(points=20), lambda s: s)
    assert torch.isfinite(s).all()
    assert (s > 0).all()


def test_searched_clipping_has_less_error_than_none(problem):
    W, _, statistics = problem
    W = W.clone()
    W[:, 7] *= 6  # an outlier that sets the step of its group
    grid = search_clip(W, statistics.H, AwqRecipe(), ClipSearch(points=20, least=0.5))
    assert error_of(W, statistics.H, grid) < 0.9 * error_of(W, statistics.H, fit_grid(W, 4, 128))


def test_compensated_rounding_has_less_error_than_nearest(problem):
    W, _, statistics = problem
    grid = fit_grid(W, 4, 128)
    q = gptq(W, statistics.H, grid, 0.01, "here")
    assert output_error(dequantize(q, grid) - W, statistics.H).sum() < 0.7 * error_of(W, statistics.H, grid)


def test_compensated_rounding_without_correlation_is_nearest_rounding():
    W = torch.randn(32, 256)
    grid = fit_grid(W, 4, 128)
    assert torch.equal(gptq(W, torch.eye(256), grid, 0.01, "here"), quantize(W, grid))


def test_a_gram_that_is_no_gram_is_refused_with_place_and_remedy():
    H = -torch.eye(128)
    with pytest.raises(CompressError, match=r"layers\.3\.mlp: Gram is singular at damping 0\.01; raise"):
        gptq(torch.randn(8, 128), H, fit_grid(torch.randn(8, 128), 4, 128), 0.01, "layers.3.mlp")


# --- folding


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_folding_scales_leaves_the_float_layer_unchanged(tmp_path, site, kv_heads):
    write_internlm2(tmp_path / "m", CONFIG | {"num_key_value_heads": kv_heads, "bias": True})
    checkpoint = Checkpoint(tmp_path / "m")
    runner = LayerRunner(checkpoint, "cpu", 4)
    hidden, layer = runner.embed(windows()), runner.load(0)
    before = runner.run(layer, hidden)
    s = tie_for(site, checkpoint.config)(torch.rand(joined_weight(layer, site).shape[1]) + 0.5)
    fold_(layer, site, s, checkpoint.config)
    assert torch.allclose(runner.run(layer, hidden), before, atol=1e-4, rtol=1e-4)


def test_heads_of_a_group_share_the_scales_of_o(tmp_path):
    write_internlm2(tmp_path / "m")
    config = Checkpoint(tmp_path / "m").config
    s = tie_for(SITES[1], config)(torch.rand(256)).view(2, 2, 64)
    assert torch.equal(s[:, 0], s[:, 1])


# --- the whole walk


def quantized(folder, out, recipe, layout="llama", tokens=None):
    out.mkdir()
    checkpoint = Checkpoint(folder)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), layout)
    return quantize_model(checkpoint, windows(8) if tokens is None else tokens, recipe, writer)


def kl(folder, reference, ids):
    with torch.no_grad():
        ours, base = (load_model(f)(ids).logits.log_softmax(-1) for f in (folder, reference))
    return (base.exp() * (base - ours)).sum(-1).mean().item()


def test_the_recipe_beats_plain_rounding_and_each_ingredient_can_be_left_out(tmp_path):
    write_internlm2(tmp_path / "m")
    calibration, held_out = windows(32, seed=1), windows(8, seed=2)
    recipes = {"whole": AwqRecipe(), "plain": PLAIN, "no-gptq": AwqRecipe(rounding=Nearest(method="nearest"))}
    losses = {}
    for name, recipe in recipes.items():
        quantized(tmp_path / "m", tmp_path / name, recipe, tokens=calibration)
        losses[name] = kl(tmp_path / name, tmp_path / "m", held_out)
    assert losses["whole"] < losses["no-gptq"] < losses["plain"]


def test_plain_rounding_stores_each_weight_s_nearest_point(tmp_path):
    tensors = write_internlm2(tmp_path / "m")
    errors = quantized(tmp_path / "m", tmp_path / "q", PLAIN)
    W = tensors["model.layers.1.feed_forward.w2.weight"]
    stored = load_model(tmp_path / "q").get_parameter("model.layers.1.mlp.down_proj.weight")
    assert torch.allclose(stored, nearest(W, fit_grid(W, 4, 128)), atol=1e-6)
    assert [e.linear for e in errors if e.layer == 0] == list(LINEARS)
    assert all(e.error == pytest.approx(e.nearest_error) for e in errors)


def test_both_layouts_hold_the_same_numbers(tmp_path):
    write_internlm2(tmp_path / "m")
    quantized(tmp_path / "m", tmp_path / "llama", AwqRecipe())
    quantized(tmp_path / "m", tmp_path / "internlm2", AwqRecipe(), "internlm2")
    ours, theirs = (load_model(tmp_path / layout).state_dict() for layout in ("llama", "internlm2"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "model.layers.0.attention.wqkv.qweight" in str((tmp_path / "internlm2" / "model.safetensors.index.json").read_text())


def test_equal_inputs_give_equal_bytes(tmp_path):
    write_internlm2(tmp_path / "m")
    for out in ("a", "b"):
        quantized(tmp_path / "m", tmp_path / out, AwqRecipe())
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_later_layers_are_calibrated_on_what_rounded_layers_give(tmp_path):
    """The second layer's statistics are those of a run through the stored first layer."""
    write_internlm2(tmp_path / "m")
    quantized(tmp_path / "m", tmp_path / "q", AwqRecipe())
    stored = LayerRunner(Checkpoint(tmp_path / "q"), "cpu", 8)
    hidden = stored.run(stored.load(0), stored.embed(windows(8)))
    floats = LayerRunner(Checkpoint(tmp_path / "m"), "cpu", 8)
    layer, collector = floats.load(1), Collector()
    with collector.watching(layer, ["mlp.down_proj"]):
        floats.run(layer, hidden)
    W = layer.get_parameter("mlp.down_proj.weight").data
    H = collector.of["mlp.down_proj"].H
    plain = (output_error(nearest(W, fit_grid(W, 4, 128)) - W, H).sum() / output_error(W, H).sum()).item()
    errors = quantized(tmp_path / "m", tmp_path / "again", AwqRecipe())
    walked = next(e for e in errors if (e.layer, e.linear) == (1, "mlp.down_proj"))
    # Embeddings are stored as float16 in the artifact and read as float32 in the walk.
    assert walked.nearest_error == pytest.approx(plain, rel=1e-2)


def test_a_value_beyond_float16_is_refused(tmp_path):
    tensors = write_internlm2(tmp_path / "m")
    tensors["output.weight"][0, 0] = 1e6
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CompressError, match=r"lm_head\.weight: 1e\+06 exceeds float16"):
        quantized(tmp_path / "m", tmp_path / "q", PLAIN)


def test_unpacking_leaves_float_tensors_alone():
    stored = {"a.weight": torch.ones(2), **{f"b.{k}": v for k, v in pack_linear(*_codes()).items()}}
    assert unpacked(stored).keys() == {"a.weight", "b.weight"}


def _codes():
    W = torch.randn(8, 128)
    grid = fit_grid(W, 4, 128)
    return quantize(W, grid), grid


def test_recipes_take_no_unknown_ingredient():
    with pytest.raises(ValueError, match="Extra inputs"):
        AwqRecipe(group_sise=128)
    with pytest.raises(ValueError, match="greater than 0"):
        Gptq(method="gptq", damping=0.0)
