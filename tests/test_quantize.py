"""The quantizer on whole models: a layer in its steps, the walk, what it writes."""

from pathlib import Path

import pytest
import torch
from calibration import statistics_of
from safetensors.torch import save_file
from tiny import CONFIG, windows, write_internlm2
from tokenizers import Tokenizer

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model, unpacked
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import CorpusRecipe, make_windows, read_documents
from compress.errors import CompressError
from compress.quantize.formats.awq import pack_linear
from compress.quantize.grid import fit_grid, nearest, quantize
from compress.quantize.layer import fold_
from compress.quantize.recipe import AwqRecipe, Gptq, Nearest
from compress.quantize.resources import Resources
from compress.quantize.sites import LINEARS, SITES, joined_weight, producer_divisor, tie_for
from compress.quantize.statistics import output_error
from compress.quantize.stream import FLOATS, LEAVE, ROUNDED, WHOLE_LAYER, Stream
from compress.quantize.walk import REPORTED, quantize_model

PLAIN = AwqRecipe(scale=None, clip=None, feedback=None, rounding=Nearest(method="nearest"))
ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "demo" / "base"
RECIPE = CorpusRecipe(source="examples/demo/text/calibration.jsonl", windows=96, length=128)


# --- the layer in steps, and folding


STEPS = {"rounded": (*ROUNDED, LEAVE), "floats": FLOATS, "whole": WHOLE_LAYER}


@pytest.fixture(params=[1, 2, 4])
def runner(request, tmp_path):
    write_internlm2(tmp_path / "m", CONFIG | {"num_key_value_heads": request.param, "bias": True})
    return LayerRunner(Checkpoint(tmp_path / "m"), "cpu", 3)


def stream_of(runner, tokens, **resources):
    room = Resources(batch=runner.batch, **resources).room((*tokens.shape, runner.hidden_size))
    runner.embed_(room, tokens)
    return Stream(runner, room)


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_layer_in_steps_is_the_layer(runner, steps):
    layer, stream = runner.load(0), stream_of(runner, windows())
    expected = runner.run(layer, stream.hidden.all())
    stream.move_(layer, *steps)
    assert torch.allclose(stream.hidden.all(), expected, atol=1e-6)


@pytest.mark.parametrize("number", range(4), ids=[site.key for site in SITES])
def test_both_models_steps_arrive_at_the_input_of_the_same_linears(runner, number):
    layer, inputs = runner.load(0), {}
    for name, steps in (("rounded", ROUNDED), ("floats", FLOATS)):
        stream = stream_of(runner, windows())
        stream.move_(layer, *steps[:number])
        inputs[name] = torch.cat([x for _, x in stream.through(layer, steps[number])])
    assert torch.equal(inputs["rounded"], inputs["floats"])
    site = layer.get_parameter(f"{SITES[number].key}.weight")
    assert inputs["rounded"].shape[-1] == site.shape[1]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
def test_folding_scales_leaves_the_float_layer_unchanged(runner, site):
    config = runner.checkpoint.config
    hidden, layer = runner.embed(windows()), runner.load(0)
    before = runner.run(layer, hidden)
    s = tie_for(site, config)(torch.rand(joined_weight(layer, site).shape[1]) + 0.5)
    for name in site.linears:
        layer.get_parameter(f"{name}.weight").data.mul_(s)
    fold_(layer, site, producer_divisor(site, s, config), {})
    # What absorbs the scales is rounded to what the file will hold.
    assert torch.allclose(runner.run(layer, hidden), before, atol=2e-2, rtol=2e-2)


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


def test_plain_rounding_asks_no_text_and_reports_on_the_first_windows_of_it(tmp_path):
    write_internlm2(tmp_path / "m", CONFIG | {"num_hidden_layers": 1})
    longer = windows(REPORTED + 4)
    first, errors = (quantized(tmp_path / "m", tmp_path / str(n), PLAIN, tokens=longer[:n]) for n in (REPORTED, None))
    assert first == errors


def test_both_layouts_hold_the_same_numbers(tmp_path):
    write_internlm2(tmp_path / "m")
    quantized(tmp_path / "m", tmp_path / "llama", AwqRecipe())
    quantized(tmp_path / "m", tmp_path / "internlm2", AwqRecipe(), "internlm2")
    ours, theirs = (load_model(tmp_path / layout).state_dict() for layout in ("llama", "internlm2"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    index = (tmp_path / "internlm2" / "model.safetensors.index.json").read_text()
    assert "model.layers.0.attention.wqkv.qweight" in index


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
    layer = floats.load(1)
    W, H = joined_weight(layer, SITES[0])[:256], statistics_of(layer.input_layernorm(hidden).detach()).H
    plain = (output_error(nearest(W, fit_grid(W, 4, 128)) - W, H).sum() / output_error(W, H).sum()).item()
    errors = quantized(tmp_path / "m", tmp_path / "again", AwqRecipe())
    walked = next(e for e in errors if (e.layer, e.linear) == (1, "self_attn.q_proj"))
    # Embeddings are stored as float16 and are float32 in the walk.
    assert walked.nearest_error == pytest.approx(plain, rel=1e-2)


def test_on_a_trained_model_feedback_and_refinement_each_lower_the_divergence(tmp_path):
    """Random weights have nothing to make good; the embedded base is a language model."""
    documents = read_documents(RECIPE, ROOT)
    write_tokenizer(BASE, tmp_path)
    every = make_windows(documents, Tokenizer.from_file(str(tmp_path / "tokenizer.json")), RECIPE).tokens
    calibration, held_out = torch.from_numpy(every[::2]), torch.from_numpy(every[1::2]).long()
    recipes = {
        "whole": AwqRecipe(),
        "no feedback": AwqRecipe(feedback=None),
        "no refinement": AwqRecipe(rounding=Gptq(method="gptq", refine=0)),
    }
    losses = {}
    for name, recipe in recipes.items():
        quantized(BASE, tmp_path / name, recipe, tokens=calibration)
        losses[name] = kl(tmp_path / name, BASE, held_out)
    assert losses["whole"] < losses["no refinement"] < losses["no feedback"]


def test_tokens_that_do_not_count_are_in_no_statistics(tmp_path):
    write_internlm2(tmp_path / "m")
    checkpoint, every = Checkpoint(tmp_path / "m"), windows(8)
    counted = torch.ones_like(every, dtype=torch.bool)
    counted[4:] = False
    runs = {"masked": (every, counted), "fewer": (every[:4], None), "all": (every, None)}
    errors = {}
    for name, (tokens, which) in runs.items():
        (tmp_path / name).mkdir()
        writer = ModelWriter(tmp_path / name, checkpoint.config.replace(torch_dtype="float16"), "llama")
        rows = quantize_model(checkpoint, tokens, AwqRecipe(), writer, Resources(batch=4), counted=which)
        errors[name] = torch.tensor([row.error for row in rows])
    assert torch.allclose(errors["masked"], errors["fewer"], rtol=1e-3)
    assert not torch.allclose(errors["masked"], errors["all"], rtol=1e-3)


def test_a_value_beyond_float16_is_refused(tmp_path):
    tensors = write_internlm2(tmp_path / "m")
    tensors["output.weight"][0, 0] = 1e6
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
        AwqRecipe(damping=0.0)
