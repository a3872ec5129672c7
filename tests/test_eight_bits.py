"""8-bit models: block floats without calibration, and whole numbers smoothed for rounded inputs."""

from pathlib import Path

import pytest
import torch
from calibration import correlated_inputs
from formats import write_in_scheme
from safetensors.torch import save_file
from test_resume import content
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.quantize.fp8 import TORCH_DTYPE, quantize_to_fp8
from compress.quantize.int8 import output_errors, quantize_to_int8, search_smoothing
from compress.quantize.schemes import Int8Recipe, SmoothSearch
from compress.quantize.sites import LINEARS

BASE = Path(__file__).parents[1] / "examples" / "demo" / "base"
PLAIN, SMOOTH = Int8Recipe(method="int8", smooth=None), Int8Recipe(method="int8")


def fp8(folder, out, layout="llama"):
    out.mkdir()
    checkpoint = Checkpoint(folder)
    return quantize_to_fp8(checkpoint, ModelWriter(out, checkpoint.config.replace(torch_dtype=TORCH_DTYPE), layout))


def int8(folder, out, recipe=SMOOTH, layout="llama", tokens=None, **options):
    out.mkdir()
    checkpoint = Checkpoint(folder)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), layout)
    return quantize_to_int8(checkpoint, windows(8) if tokens is None else tokens, recipe, writer, **options)


def kl(folder, reference, ids):
    with torch.no_grad():
        ours, base = (load_model(f)(ids).logits.log_softmax(-1) for f in (folder, reference))
    return (base.exp() * (base - ours)).sum(-1).mean().item()


# --- block floats


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_every_linear_is_stored_in_blocks_and_the_rest_in_bfloat16(tmp_path, layout):
    wide = CONFIG | {"hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
    write_internlm2(tmp_path / "m", wide)
    errors = fp8(tmp_path / "m", tmp_path / "q", layout)
    assert [(e.layer, e.linear) for e in errors] == [(n, linear) for n in range(2) for linear in LINEARS]
    assert all(1e-4 < e.error < 1e-3 for e in errors)  # 3 bits of mantissa
    checkpoint = Checkpoint(tmp_path / "q")
    stored = checkpoint.tensors(checkpoint.layer_names(1))
    assert stored["model.layers.1.mlp.down_proj.weight"].dtype == torch.float8_e4m3fn
    assert stored["model.layers.1.self_attn.k_proj.weight_scale_inv"].shape == (2, 4)
    assert stored["model.layers.1.input_layernorm.weight"].dtype == torch.bfloat16
    assert checkpoint.config.fields["torch_dtype"] == "bfloat16"


def test_8_bits_lose_far_less_than_4(tmp_path):
    write_internlm2(tmp_path / "m")
    fp8(tmp_path / "m", tmp_path / "fp8")
    int8(tmp_path / "m", tmp_path / "int8")
    write_in_scheme(tmp_path / "m", tmp_path / "int4", "ct-32", "llama")
    losses = {name: kl(tmp_path / name, tmp_path / "m", windows(4, seed=2)) for name in ("fp8", "int8", "int4")}
    assert losses["int8"] < losses["fp8"] < 0.3 * losses["int4"]


def test_equal_inputs_give_equal_bytes(tmp_path):
    write_internlm2(tmp_path / "m")
    for make, name in ((fp8, "fp8"), (int8, "int8")):
        make(tmp_path / "m", tmp_path / f"{name}-a")
        make(tmp_path / "m", tmp_path / f"{name}-b")
        files = sorted(path.name for path in (tmp_path / f"{name}-a").iterdir())
        assert all(
            (tmp_path / f"{name}-a" / f).read_bytes() == (tmp_path / f"{name}-b" / f).read_bytes() for f in files
        )


def test_a_value_beyond_the_type_of_the_rest_is_refused(tmp_path):
    tensors = write_internlm2(tmp_path / "m")
    tensors["output.weight"][0, 0] = 1e6
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CompressError, match=r"lm_head\.weight: 1e\+06 exceeds float16's 65504"):
        int8(tmp_path / "m", tmp_path / "q")
    fp8(tmp_path / "m", tmp_path / "wide")  # bfloat16 holds it


# --- smoothing


def test_searched_smoothing_has_less_error_than_none():
    x, W = correlated_inputs(), torch.randn(64, 256) / 16
    m = x.abs().amax(0)
    s = search_smoothing(W, x, m, SmoothSearch(points=9), lambda s: s)
    assert output_errors(W, x, s).sum() < 0.5 * output_errors(W, x, torch.ones(256)).sum()


def test_where_smoothing_does_not_help_there_is_none():
    x, W = torch.ones(8, 64), torch.ones(16, 64)  # both are rounded without any error
    assert torch.equal(search_smoothing(W, x, torch.ones(64), SmoothSearch(points=9), lambda s: s), torch.ones(64))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_smoothing_leaves_the_float_model_unchanged(tmp_path, kv_heads):
    """What is stored, read without rounding the inputs, is the base but for 8-bit weights."""
    write_internlm2(tmp_path / "m", CONFIG | {"num_key_value_heads": kv_heads, "bias": True})
    int8(tmp_path / "m", tmp_path / "q")
    model, base = load_model(tmp_path / "q"), load_model(tmp_path / "m")
    norm = "model.layers.1.input_layernorm.weight"
    assert not torch.allclose(model.get_parameter(norm), base.get_parameter(norm), rtol=0.05)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    with torch.no_grad():
        ours, theirs = (m(windows(4)).logits for m in (model, base))
    assert (ours - theirs).pow(2).mean() < 2e-3 * theirs.pow(2).mean()


def test_smoothing_lowers_the_divergence_of_a_model_with_outliers(tmp_path):
    write_internlm2(tmp_path / "m")
    calibration, held_out = windows(16, seed=1), windows(8, seed=2)
    errors = int8(tmp_path / "m", tmp_path / "smooth", tokens=calibration)
    int8(tmp_path / "m", tmp_path / "plain", PLAIN, tokens=calibration)
    assert [(e.layer, e.linear) for e in errors] == [(n, linear) for n in range(3) for linear in LINEARS]
    assert all(e.error <= 1.2 * e.nearest_error for e in errors)
    assert kl(tmp_path / "smooth", tmp_path / "m", held_out) < kl(tmp_path / "plain", tmp_path / "m", held_out)


def test_tokens_that_do_not_count_do_not_choose_the_smoothing(tmp_path):
    """The last tokens of a window, which no other sees."""
    write_internlm2(tmp_path / "m")
    tokens, counted = windows(8), torch.ones(8, 32, dtype=torch.bool)
    counted[:, -12:] = False
    others = torch.where(counted, tokens, windows(8, seed=5))
    for name, text in (("a", tokens), ("b", others)):
        int8(tmp_path / "m", tmp_path / name, tokens=text, counted=counted)
        int8(tmp_path / "m", tmp_path / f"{name}-all", tokens=text)
    a, b, a_all, b_all = (content(tmp_path / name) for name in ("a", "b", "a-all", "b-all"))
    assert a == b
    assert a_all != b_all
    assert a != a_all


def test_both_layouts_hold_the_same_numbers(tmp_path):
    write_internlm2(tmp_path / "m")
    for layout in ("llama", "internlm2"):
        int8(tmp_path / "m", tmp_path / layout, layout=layout)
    ours, theirs = (load_model(tmp_path / layout).state_dict() for layout in ("llama", "internlm2"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
