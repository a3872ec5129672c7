"""Every stored format: what is packed comes back, other readers see the same numbers, and both layouts hold them."""

import json

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from formats import SCHEMES, packed, rewrite, write_in_scheme
from safetensors.torch import load_file, save_file
from tiny import CONFIG, windows, write_config, write_internlm2
from transformers.utils.quantization_config import FineGrainedFP8Config

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.layout import OUTPUT_AXIS, PACKED
from compress.checkpoint.load import load_model, unpacked
from compress.errors import CompressError
from compress.evaluate.size import sizes
from compress.quantize.formats import compressed_tensors, fp8, int8
from compress.quantize.formats.int4 import format_named
from compress.quantize.formats.stored import STORED
from compress.quantize.grid import dequantize, fit_grid, quantize

# Heads of 128, so that blocks of rows and heads lie on each other and layout internlm2 takes every format.
WIDE = CONFIG | {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
KEPT = ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"]
KEPT += [f"model.layers.1.self_attn.{x}_proj" for x in "qkv"]
LAYOUTS = ("llama", "internlm2")


def codes(rows=64, columns=256, group_size=32):
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    grid = fit_grid(W, 4, group_size)
    return quantize(W, grid), grid


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "m"
    write_internlm2(folder, WIDE)
    return folder


# --- 4-bit codes


@pytest.mark.parametrize("name", ["awq", "compressed-tensors"])
@pytest.mark.parametrize("group_size", [32, 128])
def test_codes_and_grid_come_back_exactly(name, group_size):
    q, grid = codes(group_size=group_size)
    form = format_named(name)
    returned, other = form.unpack_linear(form.pack_linear(q, grid))
    assert torch.equal(returned, q)
    assert torch.equal(other.scales, grid.scales)
    assert torch.equal(other.zeros, grid.zeros)
    assert other.group_size == group_size


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (24, 384), (1000, 16)])
def test_pack_then_unpack_is_identity(rows, columns):
    q = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    words = compressed_tensors.pack(q)
    assert words.shape == (rows, columns // 8)
    assert torch.equal(compressed_tensors.unpack(words), q)


def scheme_of(said):
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**said["config_groups"]["group_0"]["weights"])
    )


@pytest.mark.parametrize("group_size", [32, 128])
def test_the_library_s_own_reader_sees_our_weights(group_size):
    q, grid = codes(group_size=group_size)
    stored = compressed_tensors.pack_linear(q, grid)
    scheme = scheme_of(compressed_tensors.quantization_config(group_size))
    theirs = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    assert torch.equal(theirs.float(), dequantize(q, grid).half().float())


def test_what_the_library_packs_is_what_we_pack():
    q, grid = codes()
    scheme = scheme_of(compressed_tensors.quantization_config(32))
    given = {
        "weight": dequantize(q, grid),
        "weight_scale": grid.scales,
        "weight_zero_point": (grid.zeros - 8).to(torch.int8),
    }
    theirs, ours = PackedQuantizationCompressor.compress(given, scheme), compressed_tensors.pack_linear(q, grid)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name].float(), ours[name].float()) for name in ours)
    assert {name: t.dtype for name, t in ours.items()} == {
        "weight_packed": torch.int32, "weight_zero_point": torch.int32, "weight_shape": torch.int64,
        "weight_scale": torch.float16,
    }  # fmt: skip


def test_the_library_reads_our_configuration():
    said = compressed_tensors.quantization_config(32, KEPT)
    read = QuantizationConfig.model_validate(said)
    assert read.format == "pack-quantized"
    assert read.ignore == ["lm_head", *KEPT]
    weights = read.config_groups["group_0"].weights
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (4, 32, False)


def test_a_symmetric_linear_without_zeros_is_read():
    q, grid = codes()
    stored = compressed_tensors.pack_linear(q, grid)
    del stored["weight_zero_point"]
    assert torch.equal(compressed_tensors.unpack_linear(stored)[1].zeros, torch.full_like(grid.zeros, 8))


# --- 8 bits


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (256, 384), (200, 130), (1, 1)])
def test_no_float8_weight_is_further_off_than_its_mantissa(rows, columns):
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    W[0, 0] = 50
    s = fp8.block_scales(W)
    stored = fp8.pack_linear(W, s)
    assert stored["weight"].dtype == torch.float8_e4m3fn
    assert s.shape == (-(-rows // 128), -(-columns // 128))
    step = fp8.spread(s, W) * 2.0**-9  # the subnormal step; above it, 3 bits of mantissa
    assert ((fp8.unpacked_weight(stored) - W).abs() <= torch.maximum(W.abs() / 16, step / 2) * 1.001).all()


def test_a_block_s_largest_weight_is_kept_to_the_last_bit_of_its_scale():
    W = torch.randn(256, 256)
    read = fp8.unpacked_weight(fp8.pack_linear(W, fp8.block_scales(W)))
    blocks = (t.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).abs().amax((1, 3)) for t in (W, read))
    assert torch.allclose(*blocks, rtol=1e-6)


def test_weights_of_zero_stay_zero():
    W = torch.zeros(128, 256)
    assert torch.equal(fp8.unpacked_weight(fp8.pack_linear(W, fp8.block_scales(W))), W)
    assert torch.equal(int8.unpacked_weight(int8.pack_linear(W)), W)


def test_transformers_reads_our_fp8_configuration():
    read = FineGrainedFP8Config.from_dict(fp8.quantization_config(KEPT))
    assert tuple(read.weight_block_size) == (128, 128)
    assert read.activation_scheme == "dynamic"
    assert read.modules_to_not_convert == ["lm_head", *KEPT]


def test_no_int8_weight_is_further_off_than_half_a_step():
    W = torch.randn(64, 256)
    stored = int8.pack_linear(W)
    assert stored["weight"].dtype == torch.int8
    assert stored["scale"].shape == (64, 1)
    assert ((int8.unpacked_weight(stored) - W).abs() <= 0.501 * stored["scale"]).all()


def test_each_token_is_rounded_on_its_own_scale():
    x = torch.randn(3, 5, 64) * torch.tensor([1e-6, 1.0, 1e4]).view(3, 1, 1)
    largest = x.abs().amax(-1, keepdim=True)
    assert ((int8.rounded_inputs(x) - x).abs() <= 0.501 * largest / 127).all()
    assert torch.equal(int8.rounded_inputs(torch.zeros(2, 8)), torch.zeros(2, 8))


# --- whole models


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [[], KEPT], ids=["all", "mixed"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_written_model_is_read_as_the_numbers_that_it_stands_for(tmp_path, source, scheme, kept, layout):
    expected = write_in_scheme(source, tmp_path / "q", scheme, layout, kept)
    checkpoint = Checkpoint(tmp_path / "q")
    names = [*checkpoint.outer_names(), *(name for n in range(2) for name in checkpoint.layer_names(n))]
    read = unpacked(checkpoint.tensors(names))
    assert read.keys() == expected.keys()
    assert all(torch.allclose(read[name].float(), expected[name], rtol=0, atol=1e-6) for name in expected)
    model = load_model(tmp_path / "q")
    assert torch.equal(
        model.get_parameter("model.layers.1.mlp.up_proj.weight"), read["model.layers.1.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_other_layout_and_back_is_the_identity(tmp_path, source, scheme):
    write_in_scheme(source, tmp_path / "a", scheme, "llama", KEPT)
    for made_from, layout, out in (("a", "internlm2", "b"), ("b", "llama", "c")):
        rewrite(tmp_path / made_from, tmp_path / out, layout)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "c").iterdir())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "c" / file).read_bytes() for file in files)
    one, other = (Checkpoint(tmp_path / out).quantization for out in ("a", "b"))
    assert one == other


def test_linears_in_16_bits_are_named_as_the_layout_names_them(tmp_path, source):
    write_in_scheme(source, tmp_path / "q", "awq-128", "internlm2", KEPT)
    said = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert said["modules_to_not_convert"] == [
        "model.layers.0.attention.wo", "model.layers.1.feed_forward.w2", "model.layers.1.attention.wqkv",
    ]  # fmt: skip
    assert Checkpoint(tmp_path / "q").quantization["modules_to_not_convert"] == KEPT
    names = {name for shard in (tmp_path / "q").glob("*.safetensors") for name in load_file(shard)}
    assert {"model.layers.1.attention.wqkv.weight", "model.layers.0.attention.wqkv.qweight"} < names


def test_the_fused_tensor_says_the_shape_of_the_fused_weight(tmp_path, source):
    write_in_scheme(source, tmp_path / "q", "ct-32", "internlm2")
    held = {name: t for shard in (tmp_path / "q").glob("*.safetensors") for name, t in load_file(shard).items()}
    at = "model.layers.0.attention.wqkv"
    fused = {part: held[f"{at}.{part}"] for part in STORED["compressed-tensors"].parts}
    assert fused["weight_shape"].tolist() == [1024, 512]
    theirs = PackedQuantizationCompressor.decompress(fused, scheme_of(compressed_tensors.quantization_config(32)))
    assert torch.equal(theirs["weight"].float(), compressed_tensors.unpacked_weight(fused).half().float())


def test_int8_inputs_are_rounded_where_the_engine_rounds_them(tmp_path, source):
    write_in_scheme(source, tmp_path / "q", "int8", "internlm2")
    model, seen = load_model(tmp_path / "q"), {}
    for name in ("model.layers.1.mlp.down_proj", "lm_head"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, at=name: seen.update({at: args[0]}))
    with torch.no_grad():
        model(windows(1))
    levels = {name: len(torch.unique(x[0, -1])) for name, x in seen.items()}
    assert levels["model.layers.1.mlp.down_proj"] <= 255
    assert levels["lm_head"] > 300


@pytest.mark.parametrize(
    ("scheme", "bits"), [("ct-32", 4 + 20 / 32), ("ct-128", 4 + 20 / 128), ("fp8", 8), ("int8", 8)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_are_those_worked_out_by_hand(tmp_path, source, scheme, bits, layout):
    write_in_scheme(source, tmp_path / "q", scheme, layout)
    assert sizes(tmp_path / "q")["bits_per_linear_weight"] == pytest.approx(bits, rel=0.01)


# --- what does not fit is refused


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_without_their_scales_are_refused(tmp_path, source, scheme):
    write_in_scheme(source, tmp_path / "q", scheme, "llama")
    scale = {"awq-128": "scales", "fp8": "weight_scale_inv", "int8": "scale"}.get(scheme, "weight_scale")
    shard = sorted((tmp_path / "q").glob("*.safetensors"))[1]
    held = load_file(shard)
    del held[f"model.layers.0.mlp.down_proj.{scale}"]
    save_file(held, shard, {"format": "pt"})
    index = tmp_path / "q" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    del said["weight_map"][f"model.layers.0.mlp.down_proj.{scale}"]
    index.write_text(json.dumps(said))
    with pytest.raises(CompressError, match=r"model\.layers\.0\.mlp\.down_proj.* (missing beside|without scales)"):
        load_model(tmp_path / "q")


def test_blocks_that_span_heads_are_refused_in_the_layout_that_mixes_them(tmp_path):
    write_internlm2(tmp_path / "m")  # heads of 64
    with pytest.raises(CompressError, match="blocks of 128 rows span heads of 64, and layout internlm2 mixes"):
        write_in_scheme(tmp_path / "m", tmp_path / "q", "fp8", "internlm2")
    write_in_scheme(tmp_path / "m", tmp_path / "stock", "fp8", "llama")
    with pytest.raises(CompressError, match="use llama"):
        rewrite(tmp_path / "stock", tmp_path / "other", "internlm2")


def test_q_k_and_v_in_different_forms_are_not_fused(tmp_path, source):
    with pytest.raises(CompressError, match="q, k and v are not all quantized alike"):
        write_in_scheme(source, tmp_path / "q", "awq-128", "internlm2", ["model.layers.0.self_attn.q_proj"])


def test_float8_numbers_that_are_none_are_refused(tmp_path):
    write_internlm2(tmp_path / "m", WIDE)
    write_in_scheme(tmp_path / "m", tmp_path / "q", "fp8", "llama")
    shard = sorted((tmp_path / "q").glob("*.safetensors"))[1]
    held = load_file(shard)
    held["model.layers.0.mlp.down_proj.weight"].view(torch.uint8)[0, 0] = 0x7F
    save_file(held, shard, {"format": "pt"})
    checkpoint = Checkpoint(tmp_path / "q")
    with pytest.raises(CompressError, match="holds 1 values that are NaN"):
        checkpoint.tensors(checkpoint.layer_names(0))


def test_a_configuration_that_names_a_module_which_is_none_is_refused(tmp_path):
    write_config(
        tmp_path, WIDE | {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["vision"]}}
    )
    with pytest.raises(CompressError, match="vision"):
        Checkpoint(tmp_path)


def test_every_stored_part_has_its_outputs_axis():
    assert {part for stored in STORED.values() for part in stored.parts} - {
        "weight",
        "weight_shape",
    } <= OUTPUT_AXIS.keys()
    assert {part for stored in STORED.values() for part in stored.parts} - {"weight"} == PACKED
    W = torch.randn(256, 128)
    for scheme in SCHEMES:
        for part, tensor in packed(W, scheme)[0].items():
            axis = OUTPUT_AXIS.get(part)
            assert axis is None or tensor.shape[axis] in (256, 256 // 8, 256 // 128)
