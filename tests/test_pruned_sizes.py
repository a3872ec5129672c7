"""What is left of a model is what the engine takes; what would not be is refused with the nearest that would."""

import pytest
from test_width import WIDE, ids, pruned, source, width
from tiny import write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.errors import CompressError
from compress.prune.sizes import all_resolved, legal_sizes, resolved
from compress.prune.text import Text
from compress.quantize.turbomind import Weights, problems


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_every_pruned_model_keeps_the_contract(tmp_path, tensor_parallel):
    """In 16 bits and in 4, in both layouts."""
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512}
    folder = source(tmp_path / "m", config=WIDE | sizes)
    said = {"tensor_parallel": tensor_parallel}
    recipes = [
        width(intermediate_size=0.6, **said), width(kv_heads=0.5, **said), width(hidden_size=0.5, **said),
        width(intermediate_size=0.6, kv_heads=0.5, hidden_size=0.5, remove_layers=1, **said),
    ]  # fmt: skip
    for n, recipe in enumerate(recipes):
        made = Checkpoint(pruned(folder, tmp_path / str(n), recipe, Text(ids(4)))).config
        for weights in (None, Weights("awq", 128), Weights("compressed-tensors", 128)):
            for layout in ("llama", "internlm2"):
                assert list(problems(made, layout, weights, tensor_parallel)) == []


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    write_internlm2(folder, WIDE)
    return Checkpoint(folder).config


@pytest.mark.parametrize(
    ("name", "wish", "tensor_parallel", "size"),
    [
        ("intermediate_size", 256, 1, 256), ("intermediate_size", 0.7, 1, 256), ("intermediate_size", 0.1, 1, 128),
        ("kv_heads", 0.5, 1, 1), ("hidden_size", 0.99, 1, 128), ("intermediate_size", 0.5, 2, 256),
    ],
)  # fmt: skip
def test_a_share_is_rounded_to_the_nearest_legal_size(config, name, wish, tensor_parallel, size):
    assert resolved(config, name, wish, width(**{name: wish}, tensor_parallel=tensor_parallel), "here") == size


@pytest.mark.parametrize(
    ("name", "wish", "tensor_parallel", "message"),
    [
        ("intermediate_size", 200, 1, r"intermediate_size: 200 of 384 is not legal .* nearest legal are 128 and 256"),
        ("intermediate_size", 300, 2, r"intermediate_size: 300 of 384 is not legal for tensor_parallel 2 .* are 256$"),
        ("hidden_size", 300, 1, r"hidden_size: 300 of 256 is not legal .* the nearest legal are 128$"),
        ("kv_heads", 2, 1, r"kv_heads: 2 of 2 is not legal .* the nearest legal are 1$"),
        ("hidden_size", 0.5, 3, r"hidden_size: no size below 256 is legal for tensor_parallel 3 .*: 4 heads with "),
    ],
)  # fmt: skip
def test_an_illegal_size_is_refused_with_the_nearest_legal_ones(config, name, wish, tensor_parallel, message):
    recipe = width(**{name: wish}, tensor_parallel=tensor_parallel)
    with pytest.raises(CompressError, match=rf"^prune\.x\.{message}"):
        resolved(config, name, wish, recipe, "prune.x")


def test_a_model_that_stays_in_16_bits_may_have_other_sizes(config):
    assert 200 in legal_sizes(config, "intermediate_size", width(intermediate_size=200, group_size=None))
    assert legal_sizes(config, "intermediate_size", width(intermediate_size=200)) == [128, 256]


def test_heads_that_do_not_divide_are_refused(tmp_path):
    folder = source(tmp_path / "m")
    with pytest.raises(
        CompressError, match=r"^prune\.narrow\.kv_heads: no size below 2 is legal for tensor_parallel 3"
    ):
        pruned(folder, tmp_path / "p", width(kv_heads=1, tensor_parallel=3))


@pytest.mark.parametrize("name", ["intermediate_size", "kv_heads"])
def test_where_heads_are_what_breaks_the_refusal_says_so(config, name):
    reason = "4 heads with 2 kv heads do not divide by tp 3, legal are 1, 2, 4"
    with pytest.raises(CompressError, match=rf"^x\.{name}: no size below \d+ is legal [^:]*: {reason}$"):
        resolved(config, name, 0.5, width(**{name: 0.5}, tensor_parallel=3), "x")


def test_the_smallest_size_that_is_legal_can_only_stay(config):
    least = config.replace(intermediate_size=128)
    reason = "down_proj has 64 inputs a rank, the nearest legal are 128 and up; leave intermediate_size out"
    with pytest.raises(CompressError, match=rf"^x\.intermediate_size: no size below 128 is legal .* 128: {reason}$"):
        resolved(least, "intermediate_size", 0.5, width(intermediate_size=0.5), "x")


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """The configuration of nine heads in three groups."""
    folder = tmp_path_factory.mktemp("nine")
    write_internlm2(folder, WIDE | {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3})
    return Checkpoint(folder).config


def test_shares_land_on_sizes_that_are_legal_together(nine):
    wishes = {"intermediate_size": 0.7, "kv_heads": 0.67, "hidden_size": 0.766}
    recipe = width(**wishes, group_size=None)
    assert resolved(nine, "hidden_size", 0.766, recipe, "x") == 441  # which six heads would not divide evenly
    found = all_resolved(nine, wishes, recipe, "x")
    assert dict(found) == {"intermediate_size": 269, "kv_heads": 2, "hidden_size": 444}


def test_a_number_that_the_heads_left_do_not_divide_is_refused_with_those_they_do(nine):
    wishes = {"kv_heads": 2, "hidden_size": 441}
    recipe = width(**wishes, group_size=None)
    assert 441 in legal_sizes(nine, "hidden_size", recipe)
    reason = "groups of None beside kv_heads 2; the nearest legal are 438 and 444"
    with pytest.raises(CompressError, match=rf"^x\.hidden_size: 441 of 576 is not legal .* {reason}$"):
        all_resolved(nine, wishes, recipe, "x")


def test_heads_share_the_residual_stream_evenly(nine):
    """Stock transformers refuses another configuration, even where head_dim is said."""
    assert {size % 9 for size in legal_sizes(nine, "hidden_size", width(hidden_size=0.9, group_size=None))} == {0}
    assert legal_sizes(nine, "kv_heads", width(kv_heads=0.5, group_size=None)) == [1, 2]
