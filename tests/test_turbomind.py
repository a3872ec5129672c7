"""The rules of what TurboMind loads: the cases were put to the engine's own loader, and our answer is its answer."""

import pytest

from compress.checkpoint.config import parse_config
from compress.errors import CompressError
from compress.quantize import pytorch_engine
from compress.quantize.turbomind import HEAD_DIMS, Weights, problems, require_servable

# The configuration that the engine was asked about, of which each case changes something.
BASE = {
    "architectures": ["InternLM2ForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
}


AWQ, FP8 = Weights("awq", 128), Weights("fp8", 128)
FINE, COARSE = Weights("compressed-tensors", 32), Weights("compressed-tensors", 128)


def found(layout="llama", weights=AWQ, tp=1, **changes):
    return list(problems(parse_config(BASE | changes, "here"), layout, weights, tp))


def heads(count, kv, head_dim, **more):
    return {"num_attention_heads": count, "num_key_value_heads": kv, "head_dim": head_dim} | more


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"vocab_size": 1001},
        {"vocab_size": 92544},
        {"intermediate_size": 896},
        {"intermediate_size": 1152},
        {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
        {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        heads(8, 4, 64),
        heads(4, 2, 128),
        heads(2, 1, 192),
        heads(2, 1, 256),
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "default"}},
    ],
    ids=str,
)
def test_what_the_engine_loads_is_taken(layout, changes):
    assert found(layout, **changes) == []


@pytest.mark.parametrize("head_dim", [32, 80, 96, 160])
@pytest.mark.parametrize("weights", [None, AWQ])
def test_a_head_size_without_a_kernel_is_refused_in_16_bits_too(head_dim, weights):
    size = head_dim * 4 if head_dim != 160 else 640
    (problem,) = [p for p in found(weights=weights, hidden_size=size) if p.startswith("head_dim")]
    assert problem == f"head_dim is {head_dim}, kernels exist for 64, 128, 192, 256"
    assert head_dim not in HEAD_DIMS


@pytest.mark.parametrize(
    ("kind", "llama", "internlm2"),
    [("yarn", True, False), ("llama3", True, False), ("longrope", False, False), ("linear", True, True)],
)
def test_rope_kinds_are_taken_where_the_engine_reads_them(kind, llama, internlm2):
    scaling = {"rope_type": kind, "factor": 2.0}
    for layout, taken in (("llama", llama), ("internlm2", internlm2)):
        said = found(layout, rope_scaling=scaling)
        legal = "default, linear, dynamic" + (", yarn, llama3" if layout == "llama" else "")
        assert said == ([] if taken else [f"rope_scaling {kind} in layout {layout}, legal are {legal}"])


def test_biases_are_taken_in_the_stock_layout_only():
    assert found("llama", bias=True) == []
    assert found("internlm2", bias=True) == ["layout internlm2 with biases fails in LMDeploy 0.18, use layout llama"]


@pytest.mark.parametrize("group_size", [32, 64])
def test_awq_groups_other_than_128_are_refused(group_size):
    assert found(weights=Weights("awq", group_size)) == [f"awq group_size is {group_size}, the engine takes 128"]


def test_packed_groups_of_32_are_taken_and_of_64_are_not():
    assert found(weights=FINE) == found("internlm2", FINE) == []
    assert found(weights=Weights("compressed-tensors", 64)) == [
        "compressed-tensors group_size is 64, the engine takes 32, 128"
    ]


def test_8_bit_whole_numbers_are_not_for_this_engine():
    assert found(weights=Weights("int8", 1)) == [
        "int8 weights are for LMDeploy's PyTorch engine, this one takes awq, compressed-tensors, fp8"
    ]


@pytest.mark.parametrize(
    ("changes", "tp", "problem"),
    [
        ({"intermediate_size": 1088}, 1, "down_proj has 1088 inputs a rank, the nearest legal are 1024 and 1152"),
        ({"intermediate_size": 256}, 4, "down_proj has 64 inputs a rank, the nearest legal are 128 and up"),
        ({"intermediate_size": 1000}, 1, "gate_proj has 1000 outputs a rank, the nearest legal are 960 and 1024"),
        (
            {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3},
            1,
            "q_proj has 576 inputs a rank, the nearest legal are 512 and 640",
        ),
        (heads(6, 6, 64), 2, "o_proj has 192 inputs a rank, the nearest legal are 128 and 256"),
        (heads(16, 16, 64), 16, "o_proj has 64 inputs a rank, the nearest legal are 128 and up"),
    ],
)
def test_shapes_that_do_not_fit_the_kernels_are_refused_with_the_nearest_that_do(changes, tp, problem):
    assert problem in found(tp=tp, **changes)
    assert found(tp=tp, weights=None, **changes) == []  # plain 16-bit kernels take any shape


# SmolLM2-135M and others whose width is no multiple of 128 have no 4-bit form but this one.
@pytest.mark.parametrize("inter", [1088, 1536])
@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_groups_of_32_take_widths_that_groups_of_128_do_not(layout, inter):
    changes = {"hidden_size": 576, "intermediate_size": inter, **heads(9, 3, 64)}
    assert found(layout, FINE, **changes) == []
    assert "q_proj has 576 inputs a rank, the nearest legal are 512 and 640" in found(layout, COARSE, **changes)


@pytest.mark.parametrize(
    ("layout", "weights", "tp", "changes", "problem"),
    [
        (
            "llama",
            FINE,
            1,
            {"intermediate_size": 1000},
            "down_proj has 1000 inputs a rank, the nearest legal are 960 and",
        ),
        ("llama", FINE, 4, heads(4, 4, 64), "o_proj has 64 inputs a rank, the nearest legal are 128 and up"),
        (
            "llama",
            FP8,
            1,
            {"intermediate_size": 1088},
            "gate_proj has 1088 outputs a rank, the nearest legal are 1024 and",
        ),
        (
            "llama",
            FP8,
            2,
            {"intermediate_size": 384},
            "down_proj has 192 inputs a rank, the nearest legal are 128 and 256",
        ),
        ("llama", FP8, 1, heads(4, 1, 64), "k_proj has 64 outputs a rank, the nearest legal are 128 and up"),
        ("llama", FP8, 1, heads(4, 2, 64), "k_proj has 2 heads of 64, blocks of 128 rows need a multiple of 4"),
        ("llama", FP8, 1, heads(6, 6, 64), "q_proj has 6 heads of 64, blocks of 128 rows need a multiple of 4"),
        ("internlm2", FP8, 1, heads(8, 4, 64), "head_dim is 64, fp8 in layout internlm2 takes 128, use layout llama"),
        ("internlm2", FP8, 1, heads(2, 1, 256), "head_dim is 256, fp8 in layout internlm2 takes 128, use layout llama"),
    ],
)
def test_each_format_has_limits_of_its_own(layout, weights, tp, changes, problem):
    assert any(said.startswith(problem) for said in found(layout, weights, tp, **changes))
    assert found(layout, None, tp, **changes) == []


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
@pytest.mark.parametrize("weights", [FINE, COARSE, FP8])
@pytest.mark.parametrize("changes", [{}, {"intermediate_size": 1152}, heads(4, 2, 128), heads(4, 4, 128)], ids=str)
def test_what_the_engine_loads_in_the_other_formats_is_taken(layout, weights, changes):
    assert found(layout, weights, **changes) == []


@pytest.mark.parametrize("changes", [heads(8, 4, 64), heads(2, 1, 256)], ids=str)
def test_blocks_and_heads_of_other_sizes_go_together_in_the_stock_layout(changes):
    assert found("llama", FP8, **changes) == []


@pytest.mark.parametrize(
    ("count", "kv", "tp", "legal"),
    [
        (4, 2, 8, "1, 2, 4"),  # too few query heads
        (12, 6, 4, "1, 2"),  # 6 kv heads are neither split nor repeated into 4
        (24, 3, 2, "1"),
        (7, 7, 2, "1"),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_the_sizes_that_do(count, kv, tp, legal):
    expected = f"{count} heads with {kv} kv heads do not divide by tp {tp}, legal are {legal}"
    assert expected in found(tp=tp, weights=None, **heads(count, kv, 64))


@pytest.mark.parametrize(("count", "kv", "tp"), [(4, 2, 4), (8, 1, 8), (32, 8, 8), (12, 6, 2)])
def test_heads_that_divide_or_are_repeated_are_taken(count, kv, tp):
    wide = {"intermediate_size": 128 * 8 * tp, "hidden_size": 128 * count}
    assert found(tp=tp, **heads(count, kv, 128), **wide) == []


def test_every_reason_is_told_at_once_with_the_place():
    config = parse_config(BASE | {"hidden_size": 320, "intermediate_size": 1000, "bias": True}, "here")
    with pytest.raises(CompressError) as refused:
        require_servable(config, "internlm2", COARSE, "quantize.x")
    message = str(refused.value)
    assert message.startswith("quantize.x: TurboMind would not load this: head_dim is 80")
    for reason in ("biases", "q_proj has 320 inputs", "down_proj has 1000 inputs"):
        assert reason in message


def test_a_servable_model_passes():
    require_servable(parse_config(BASE, "here"), "llama", AWQ, "quantize.x")


@pytest.mark.parametrize("weights", [AWQ, FINE, FP8])
def test_the_published_internlm2_models_pass_on_the_usual_numbers_of_gpus(weights):
    shapes = {  # hidden, intermediate, heads, kv heads: 1.8B, 7B, 20B
        (2048, 8192, 16, 8): (1, 2, 4, 8),
        (4096, 14336, 32, 8): (1, 2, 4, 8),
        (6144, 16384, 48, 8): (1, 2, 4, 8),
    }
    for (hidden, inter, count, kv), ranks in shapes.items():
        size = {"hidden_size": hidden, "intermediate_size": inter, **heads(count, kv, 128)}
        assert [found("internlm2", weights, tp, **size) for tp in ranks] == [[]] * len(ranks)
        config = parse_config(BASE | size, "here")
        assert [list(pytorch_engine.problems(config, "internlm2", tp)) for tp in ranks] == [[]] * len(ranks)


@pytest.mark.parametrize(
    ("layout", "tp", "changes", "problem"),
    [
        ("llama", 1, {"intermediate_size": 1000}, "down_proj has 1000 inputs a rank, legal are multiples of 128"),
        ("llama", 8, {}, "4 heads with 2 kv heads do not divide by tp 8"),
        ("internlm2", 1, heads(4, 2, 64), "head_dim is 64, in layout internlm2 it is taken for 128; use layout llama"),
    ],
)
def test_what_the_other_engine_would_read_wrongly_is_refused(layout, tp, changes, problem):
    config = parse_config(BASE | changes, "here")
    with pytest.raises(CompressError, match=r"quantize\.x: LMDeploy's PyTorch engine would not run this") as refused:
        pytorch_engine.require_servable(config, layout, "quantize.x", tp)
    assert problem in str(refused.value)
