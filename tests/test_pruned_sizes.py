"""What is left of a model is what the engine takes; what would not be is refused with the nearest that would."""

import pytest
from test_width import WIDE, ids, pruned, source, width
from tiny import write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.errors import CompressError
from compress.prune.sizes import legal_sizes, resolved
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
        ("hidden_size", 0.5, 3, r"hidden_size: no size below 256 is legal for tensor_parallel 3 .* leave hidden_s"),
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


def test_heads_share_the_residual_stream_evenly(tmp_path):
    """Stock transformers refuses another configuration, even where head_dim is said."""
    write_internlm2(tmp_path, WIDE | {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3})
    nine = Checkpoint(tmp_path).config
    assert {size % 9 for size in legal_sizes(nine, "hidden_size", width(hidden_size=0.9, group_size=None))} == {0}
    assert legal_sizes(nine, "kv_heads", width(kv_heads=0.5, group_size=None)) == [1, 2]
