"""Linears that a quantized model keeps in 16 bits are planned so: against stored bytes, and by whichever names."""

import json

import pytest
from formats import write_in_scheme
from safetensors.torch import load_file
from tiny import CONFIG, write_internlm2

from compress.checkpoint.layout import modules_in_layout
from compress.checkpoint.vision import whole_quantization
from compress.quantize.sites import LINEARS
from serving.choices import in_4_bits
from serving.errors import ServingError
from serving.kept import QKV, kept_parameters, modules
from serving.memory import weights_bytes
from serving.shape import parse_shape, read_shape

KEPT = [
    "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.gate_proj",
    "model.layers.2.mlp.up_proj", *(f"model.layers.1.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")),
]  # fmt: skip
NAMES_OF = {"awq": "modules_to_not_convert", "compressed-tensors": "ignore", "fp8": "modules_to_not_convert"}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HIDDEN, INTER = 256, 384  # of CONFIG


def held_bytes(folder):
    """What an engine holds of the folder's tensors: codes as they are, a scale and a zero a group in 16 bits, the rest
    in 16; an 8-bit block's scale is nothing."""
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    spent = {"qweight": 4, "weight_packed": 4, "scales": 4, "weight_scale": 4}  # bytes an element, of what is packed
    spent |= dict.fromkeys(("qzeros", "weight_zero_point", "weight_shape", "weight_scale_inv"), 0)
    return sum(t.numel() * spent.get(name.rsplit(".", 1)[1], min(2, t.element_size())) for name, t in tensors.items())


STORED = [(scheme, layout) for scheme in ("awq-128", "ct-32", "ct-128") for layout in ("llama", "internlm2")]
STORED += [("fp8", "llama")]  # whose blocks span heads of 64, which the other layout mixes


@pytest.mark.parametrize(("scheme", "layout"), STORED)
@pytest.mark.parametrize("kept", [[], KEPT], ids=["all", "mixed"])
def test_what_a_stored_model_holds_is_planned_to_the_byte(tmp_path, scheme, kept, layout):
    write_internlm2(tmp_path / "source")
    write_in_scheme(tmp_path / "source", tmp_path / "q", scheme, layout, kept)
    shape = read_shape(tmp_path / "q")
    assert weights_bytes(shape, 1, shape.bits) == held_bytes(tmp_path / "q")
    assert bool(kept_parameters(shape)) == bool(kept)
    assert weights_bytes(shape, 1, 16) == 2 * (shape.linear_parameters + shape.other_parameters)


def kept_of(names, architecture="LlamaForCausalLM", method="awq", **whole):
    text = CONFIG | {"architectures": [architecture], "quantization_config": {"quant_method": method}}
    text["quantization_config"] |= {"bits": 4, NAMES_OF[method]: names}
    if not whole:
        return kept_parameters(parse_shape(text, "config.json"))
    said = {"quantization_config": text.pop("quantization_config"), "vision_config": VISION, "text_config": text}
    return kept_parameters(parse_shape(whole | said, "config.json"))


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (None, 0),
        ([], 0),
        (["lm_head", "vision_tower", "gate", "down"], 0),
        (["model.layers.1.mlp.down_proj"], HIDDEN * INTER),
        (["model.layers.1", "lm_head"], 2 * (HIDDEN * HIDDEN + HIDDEN * HIDDEN // 2) + 3 * HIDDEN * INTER),
        (["mlp.down_proj"], 3 * HIDDEN * INTER),
        (["down_proj", "model.layers.0.mlp.down_proj"], 3 * HIDDEN * INTER),
        (["model.layers.7.mlp.down_proj"], 0),
        (["vision_model.encoder.layers.0.self_attn.o_proj"], 0),
    ],
    ids=str,
)
def test_a_name_means_the_modules_whose_name_it_is_part_of(names, weights):
    assert kept_of(names) == weights


def test_a_pattern_is_a_regular_expression_and_a_broken_one_is_named():
    assert kept_of([r"re:.*layers\.[02]\.mlp\.up_proj", "lm_head"], method="compressed-tensors") == 2 * HIDDEN * INTER
    with pytest.raises(ServingError, match=r"^config\.json: ignore has re:\(, which is no regular expression \("):
        kept_of(["re:("], method="compressed-tensors")
    with pytest.raises(ServingError, match=r"^config\.json: ignore is 'lm_head', not a list of names; "):
        kept_of("lm_head", method="compressed-tensors")


def test_q_k_and_v_are_one_linear_to_the_engine_so_one_takes_the_others_along():
    """LMDeploy's `dequant_mixed`: where the three differ, it unpacks those that are packed."""
    assert kept_of(["model.layers.0.self_attn.q_proj"]) == 2 * HIDDEN * HIDDEN
    assert kept_of(["model.layers.0.attention.wqkv"], "InternLM2ForCausalLM") == 2 * HIDDEN * HIDDEN
    assert kept_of(["model.layers.0.self_attn.q_proj"], "InternLM2ForCausalLM") == 0  # which has no such module


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_a_layer_s_modules_have_the_names_that_checkpoints_have(layout):
    named = {"llama": "LlamaForCausalLM", "internlm2": "InternLM2ForCausalLM"}
    found = modules(parse_shape(CONFIG | {"architectures": [named[layout]]}, "config.json"))
    layer = "model.layers.3."
    assert {layer + module for module in found} == set(modules_in_layout((layer + name for name in LINEARS), layout))
    linears = {linear for module in found.values() for linear in module}
    assert linears == {name.rsplit(".", 1)[1] for name in LINEARS}
    assert linears > QKV


@pytest.mark.parametrize("method", ["awq", "compressed-tensors"])
def test_the_language_model_of_a_whole_is_found_by_its_names_there(method):
    names = NAMES_OF[method]
    given = whole_quantization({"quant_method": method, names: KEPT[:1]})[names]
    newer = [name.replace("language_model.model.", "model.language_model.") for name in given]
    whole = {"architectures": ["InternVLForConditionalGeneration"]}
    assert kept_of(given, method=method, **whole) == kept_of(newer, method=method, **whole) == HIDDEN * HIDDEN


def test_a_4_bit_variant_of_another_format_has_nothing_kept():
    quantization = {"quant_method": "fp8", "modules_to_not_convert": KEPT}
    said = CONFIG | {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    shape = parse_shape(said, "config.json")
    assert weights_bytes(in_4_bits(shape), 1, 4) < weights_bytes(shape, 1, 4)


def test_the_command_counts_what_is_kept(turbopress, tmp_path):
    took = {}
    for kept in ([], ["down_proj"]):
        quantization = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": kept}
        said = CONFIG | {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
        (tmp_path / "config.json").write_text(json.dumps(said))
        _, out, _ = turbopress("memory", tmp_path / "config.json", "--gpu", "24GiB", "--json")
        took[bool(kept)] = json.loads(out)["weights_bytes"]
    assert took[True] - took[False] == kept_of(["down_proj"]) * (16 - 4.25) / 8
