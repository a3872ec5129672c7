"""The stages `quantize` and `evaluate` on the 8-bit methods: what they write, and what they refuse to write."""

import json

import pytest
import torch
from tiny_repository import make_base

from compress.checkpoint.checkpoint import Checkpoint
from compress.errors import CompressError
from pipelines import cli, evaluate, quantize
from registry.manifest import read

VARIANTS = {
    "fp8": {"from": "base", "method": "fp8"},
    "w8a8": {"from": "base", "method": "int8", "layout": "internlm2"},
    "fused": {"from": "base", "method": "fp8", "layout": "internlm2"},
    "fine": {"from": "base", "group_size": 32, "format": "compressed-tensors", "tensor_parallel": 4},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository with a base of 4 kv heads and calibration windows."""
    return make_base(tmp_path_factory.mktemp("formats"), sections={"quantize": VARIANTS}, num_key_value_heads=4)


@pytest.fixture
def repository(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return made


def stage(root, key, out):
    quantize.main(key, root / "models" / "base", root / "data", out / key, out / f"{key}-trace")
    return out / key


def test_block_floats_are_made_without_calibration_and_served_by_turbomind(repository, tmp_path):
    folder = stage(repository, "fp8", tmp_path)
    assert read(folder).data == {}
    assert read(folder).recipe["method"] == "fp8"
    assert "--backend turbomind --model-format fp8\n" in (folder / "README.md").read_text()
    rows = json.loads((tmp_path / "fp8-trace" / "trace.json").read_text())
    assert len(rows) == 14
    assert rows[0].keys() == {"layer", "linear", "error"}
    assert (tmp_path / "fp8-trace" / "trace.png").is_file()


def test_whole_numbers_are_smoothed_on_the_calibration_windows_and_served_by_the_other_engine(repository, tmp_path):
    folder = stage(repository, "w8a8", tmp_path)
    assert read(folder).data.keys() == {"calibration"}
    assert "--backend pytorch\n" in (folder / "README.md").read_text()
    evaluate.main(
        "w8a8", folder, repository / "models" / "base", repository / "data", tmp_path / "r.json", tmp_path / "details"
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert 0 < report["metrics"]["kl_nats"] < 0.05
    assert report["metrics"]["bits_per_linear_weight"] == pytest.approx(8, rel=0.02)
    assert "rounded to 8 bits a token" in report["protocol"]["inputs"]


def test_a_converted_model_says_how_it_is_served(repository, tmp_path):
    folder = stage(repository, "w8a8", tmp_path)
    cli.convert(folder, tmp_path / "stock", "llama")
    assert "--backend pytorch\n" in (tmp_path / "stock" / "README.md").read_text()
    one, other = (
        Checkpoint(place).tensor("model.layers.1.self_attn.v_proj.weight") for place in (folder, tmp_path / "stock")
    )
    assert one.dtype == torch.int8
    assert torch.equal(one, other)


def test_what_the_engine_of_a_format_would_not_load_is_refused_before_anything_is_written(repository, tmp_path):
    refusals = {
        "fused": "quantize.fused: TurboMind would not load this: head_dim is 64, fp8 in layout internlm2 takes 128",
        "fine": "quantize.fine: TurboMind would not load this: o_proj has 64 inputs a rank",
    }
    for key, message in refusals.items():
        with pytest.raises(CompressError) as refused:
            stage(repository, key, tmp_path)
        assert str(refused.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
