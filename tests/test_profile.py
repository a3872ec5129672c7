"""The engine profile: LMDeploy's own words, and refusals that say what would be legal."""

from itertools import product

import pytest
from pydantic import ValidationError
from tiny import CONFIG

from compress.checkpoint.config import parse_config
from compress.quantize import pytorch_engine
from compress.quantize.turbomind import HEAD_DIMS as CONTRACT_HEAD_DIMS
from compress.quantize.turbomind import KERNELS as CONTRACT_KERNELS
from compress.quantize.turbomind import Weights
from compress.quantize.turbomind import problems as contract_problems
from pipelines.params import load
from serving.errors import ServingError
from serving.profile import HEAD_DIMS, EngineProfile, backend, command, fitted, kv_bits, problems
from serving.shape import parse_shape

SHAPE = parse_shape(CONFIG, "config.json")
AWQ = {**CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}}
INT8 = {**CONFIG, "quantization_config": {"quant_method": "smooth_quant", "quant_dtype": "int8"}}


def test_it_is_frozen_and_refuses_unknown_keys():
    with pytest.raises(ValidationError, match="extra"):
        EngineProfile(cache=0.4)
    with pytest.raises(ValidationError, match="frozen"):
        EngineProfile().tp = 2


@pytest.mark.parametrize("wrong", [{"cache_max_entry_count": 1.0}, {"quant_policy": 16}, {"tp": 0}, {"session_len": 0}])
def test_values_that_lmdeploy_does_not_take_are_refused(wrong):
    with pytest.raises(ValidationError):
        EngineProfile(**wrong)


def test_the_command_line_is_lmdeploy_s(tmp_path):
    profile = EngineProfile(
        model_format="awq", cache_max_entry_count=0.4, quant_policy=8, tp=2, enable_prefix_caching=True
    )
    line = " ".join(command(profile, tmp_path, host="127.0.0.1", port=23333, model_name="awq-w4"))
    assert line.startswith(
        f"serve api_server {tmp_path} --backend turbomind --server-name 127.0.0.1 --server-port 23333"
    )
    assert "--model-format awq --cache-max-entry-count 0.4 --quant-policy 8 --tp 2" in line
    assert "--session-len" not in line
    assert line.endswith("--enable-prefix-caching")


def test_the_artifact_fills_in_its_format_and_length():
    told = fitted(EngineProfile(), parse_shape(AWQ, "config.json"), "models/awq-w4")
    assert (told.model_format, told.session_len) == ("awq", CONFIG["max_position_embeddings"])
    assert fitted(EngineProfile(), SHAPE, "models/base").model_format is None


def test_another_format_than_the_artifact_s_is_refused():
    with pytest.raises(ServingError, match="model_format is awq, but the artifact is hf; leave it out"):
        fitted(EngineProfile(model_format="awq"), SHAPE, "models/base")


def test_tp_that_does_not_divide_the_heads_is_refused_with_the_legal_ones():
    with pytest.raises(ServingError, match="tp 3 does not divide 4 heads with 2 kv heads; legal are 1, 2, 4"):
        fitted(EngineProfile(tp=3), SHAPE, "models/base")


def test_a_session_longer_than_the_model_is_refused():
    with pytest.raises(ServingError, match="session_len 65 is longer than the model's 64 positions"):
        fitted(EngineProfile(session_len=65), SHAPE, "models/base")


@pytest.mark.parametrize("head_dim", [64, 192])
def test_int4_kv_is_refused_where_it_ends_the_engine(head_dim):
    """Heads of 64: `CUDA error: misaligned address` on an H200; heads of 192: no kernel."""
    shape = parse_shape({**CONFIG, "head_dim": head_dim}, "config.json")
    assert problems(EngineProfile(quant_policy=8), shape) == []
    (told,) = problems(EngineProfile(quant_policy=4), shape)
    assert told == f"quant_policy 4 ends the engine with heads of {head_dim}; use 0 or 8"
    assert kv_bits(shape) == [0, 8]


HEADS = [(heads, kv) for heads in (4, 6, 8, 16) for kv in (1, 2, 4, 6) if heads % kv == 0]


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_it_agrees_with_the_contract_that_the_quantizer_asks(heads, kv_heads, tp):
    raw = {**CONFIG, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64}
    theirs = list(contract_problems(parse_config(raw, "config.json"), "llama", None, tp))
    assert bool(theirs) == bool(problems(EngineProfile(tp=tp), parse_shape(raw, "config.json")))
    assert HEAD_DIMS == CONTRACT_HEAD_DIMS


def packed(group_size):
    weights = {"num_bits": 4, "group_size": group_size}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


FORMATS = {  # by what the quantizer calls it: what config.json then says
    ("awq", 64): {"quant_method": "awq", "bits": 4, "group_size": 64},
    ("awq", 128): AWQ["quantization_config"],
    ("compressed-tensors", 32): packed(32),
    ("compressed-tensors", 128): packed(128),
    ("fp8", 128): {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
SIZES = list(product((256, 576), (768, 1000, 1024), ((4, 2, 64), (2, 2, 128), (8, 4, 128), (9, 3, 64))))


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("stored", FORMATS, ids=str)
@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_it_agrees_with_the_quantizer_s_contract_on_what_each_gpu_gets(layout, stored, tp):
    """In every format some of these shapes are taken, and some are not."""
    names = {"llama": "LlamaForCausalLM", "internlm2": "InternLM2ForCausalLM"}
    verdicts = {}
    for hidden, inter, (heads, kv_heads, head_dim) in SIZES:
        raw = {**CONFIG, "architectures": [names[layout]], "hidden_size": hidden, "intermediate_size": inter}
        raw |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
        theirs = list(contract_problems(parse_config(raw, "config.json"), layout, Weights(*stored), tp))
        shape = parse_shape({**raw, "quantization_config": FORMATS[stored]}, "config.json")
        ours = problems(EngineProfile(tp=tp), shape)
        assert bool(ours) == bool(theirs), (raw, ours, theirs)
        verdicts[bool(ours)] = raw
    assert len(verdicts) == 2 or stored == ("awq", 64) or tp > 2 or (layout, stored[0]) == ("internlm2", "fp8")
    assert set(CONTRACT_KERNELS) == {name for name, _ in FORMATS}  # a new format has to come here too


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_it_agrees_with_the_contract_of_8_bit_whole_numbers(tp):
    for hidden, inter, (heads, kv_heads, head_dim) in SIZES:
        raw = {**INT8, "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inter}
        raw |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
        theirs = list(pytorch_engine.problems(parse_config(raw, "config.json"), "llama", tp))
        assert bool(problems(EngineProfile(tp=tp), parse_shape(raw, "config.json"))) == bool(theirs), raw


def test_a_number_of_gpus_that_leaves_kernels_too_little_is_refused_with_the_legal_ones():
    """The demo's 4-bit base: 4 heads of 64 over 4 GPUs divide well, and leave o_proj 64 inputs."""
    shape = parse_shape({**AWQ, "hidden_size": 256, "intermediate_size": 768}, "config.json")
    told = (
        "tp 4 gives o_proj 64 inputs a GPU, and its kernels take multiples of 128; "
        "tp 4 gives down_proj 192 inputs a GPU, and its kernels take multiples of 128; legal are 1, 2"
    )
    with pytest.raises(ServingError) as refused:
        fitted(EngineProfile(tp=4), shape, "awq-w4")
    assert str(refused.value) == f"awq-w4: {told}"
    assert fitted(EngineProfile(tp=2), shape, "awq-w4").tp == 2
    assert not problems(EngineProfile(tp=4), parse_shape({**CONFIG, "intermediate_size": 768}, "config.json"))


def test_8_bit_whole_numbers_go_to_the_other_engine_without_a_word_that_lmdeploy_lacks():
    shape = parse_shape(INT8, "config.json")
    assert (backend(shape), shape.bits) == ("pytorch", 8)
    assert fitted(EngineProfile(), shape, "models/w8a8").model_format is None


def test_params_yaml_may_hold_the_profile(tmp_path):
    import yaml
    from tiny_repository import PARAMS

    params = PARAMS | {"serve": {"cache_max_entry_count": 0.4, "quant_policy": 8}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert load(tmp_path).serve == EngineProfile(cache_max_entry_count=0.4, quant_policy=8)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    assert load(tmp_path).serve == EngineProfile()
