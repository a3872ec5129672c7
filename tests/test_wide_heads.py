"""Heads twice as wide that compute the same: scores, an int4 cache, and what the engine takes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import windows
from tiny_repository import write_base, write_source

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.convert import write_in_layout
from compress.checkpoint.load import load_model
from compress.errors import CompressError
from compress.evaluate.tokens import LiveReference, score_tokens
from compress.quantize.turbomind import require_servable
from registry.manifest import verify
from serving.profile import EngineProfile, problems
from serving.shape import read_shape

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import wide_heads


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A small artifact in float32, and the same with wide heads."""
    root = tmp_path_factory.mktemp("wide")
    write_source(root / "source", num_key_value_heads=2)
    write_base(root / "source", root / "base")
    wide_heads.write_wide(root / "base", root / "wide")
    return root / "base", root / "wide"


def test_the_wide_model_says_what_the_narrow_one_says(pair):
    narrow, wide = (load_model(folder) for folder in pair)
    tokens = windows(4, 48)
    with torch.no_grad():
        difference = (narrow(tokens).logits - wide(tokens).logits).abs().max()
    assert difference < 1e-4
    assert wide.model.layers[0].self_attn.q_proj.weight.shape == (4 * 128, 256)


def test_an_int4_cache_costs_the_wide_model_what_it_costs_the_narrow_one(pair):
    tokens = windows(8, 48)
    narrow, wide = (load_model(folder) for folder in pair)
    plain, four, wide_four = (
        score_tokens(model, LiveReference(model), tokens, kv_bits=bits).nll_nats.mean().item()
        for model, bits in ((narrow, None), (narrow, 4), (wide, 4))
    )
    assert abs(four - plain) > 100 * abs(four - wide_four)


def test_both_layouts_of_the_wide_model_are_served_with_an_int4_cache(pair, tmp_path):
    wide = pair[1]
    write_in_layout(wide, "internlm2", tmp_path)
    for folder, layout in ((wide, "llama"), (tmp_path, "internlm2")):
        require_servable(Checkpoint(folder).config, layout, None, str(folder))
        assert json.loads((folder / "config.json").read_text())["head_dim"] == 128
        assert problems(EngineProfile(quant_policy=4), read_shape(folder)) == []
    assert problems(EngineProfile(quant_policy=4), read_shape(pair[0]))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(windows(1)).logits, load_model(wide)(windows(1)).logits)


def test_it_is_an_artifact_whose_manifest_says_what_it_was_made_from(pair):
    narrow, wide = map(verify, pair)
    assert wide.parents == {"from": narrow.digest}
    assert wide.recipe["head_dim"] == 128
    assert (pair[1] / "tokenizer.json").is_file()


def test_each_pair_is_turned_by_the_same_angle_as_before(pair):
    narrow, wide = (load_model(folder).model.rotary_emb.inv_freq for folder in pair)
    assert torch.allclose(wide[::2], narrow)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling dynamic depends on the width of heads"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 320}, "head_dim is 80"),
    ],
)
def test_what_would_compute_or_serve_otherwise_is_refused(tmp_path, changed, said):
    write_source(tmp_path / "source", **changed)
    write_base(tmp_path / "source", tmp_path / "base")
    with pytest.raises(CompressError, match=said):
        wide_heads.write_wide(tmp_path / "base", tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
