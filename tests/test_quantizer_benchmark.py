"""The table of recipes pairs everybody with everybody, whenever they were measured, on the same windows only; the floor
of seconds counts what is computed, and the host's memory is what the kernel says."""

import importlib
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from benchmark_windows import write_windows
from house import ROOT
from safetensors.numpy import load_file
from tiny import CONFIG, write_internlm2
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

RESULT, SCORES = "quantizer_quality.json", "quantizer_quality_windows.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality") / "model"
    write_internlm2(folder, CONFIG | {"num_hidden_layers": 1})
    return folder


def quality(model, windows, out, *options):
    command = [
        sys.executable,
        "benchmarks/quantizer.py",
        "quality",
        "--model",
        model,
        "--windows",
        windows,
        "--out",
        out,
    ]
    command = [str(part) for part in [*command, *options]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rows(out):
    return {(row["recipe"], row["domain"]): row for row in json.loads((out / RESULT).read_text())}


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """Plain rounding and a peer, which is the base itself, in one call; `awq-best` in a second."""
    out = tmp_path_factory.mktemp("measured")
    windows = out / "windows.safetensors"
    write_windows(windows, 16, calibration=24, a=3, b=4)
    digest = json.loads(windows.with_suffix(".json").read_text())["calibration"]["sha256"]
    ran = {"recipe": "lmdeploy", "elapsed_s": 2.0, "alone": False, "device": "a GPU", "error": None}
    (out / "peers").mkdir()
    (out / "peers" / "peers.json").write_text(json.dumps([ran | {"calibration": {"sha256": digest}}]))
    shutil.copytree(model, out / "peers" / "lmdeploy")
    for options in (["--recipes", "rtn", "--peers", out / "peers"], ["--recipes", "awq-best", "--shared"]):
        done = quality(model, windows, out, *options)
        assert done.returncode == 0, done.stderr
    return out


def test_a_recipe_that_is_measured_later_is_paired_with_those_before_it(measured):
    scores = load_file(measured / SCORES)
    for domain in ("a", "b"):
        less = scores[f"rtn/{domain}"][0].astype(float) - scores[f"awq-best/{domain}"][0]
        row = rows(measured)["rtn", domain]
        assert np.isclose(row["kl_above_best"], less.mean())
        assert row["kl_above_best_low"] <= row["kl_above_best"] <= row["kl_above_best_high"]
        assert np.isclose(row["kl_nats"], scores[f"rtn/{domain}"][0].mean())
        assert rows(measured)["lmdeploy", domain]["kl_above_best_high"] < 0  # the base itself is nearest to the base


def test_rows_say_seconds_and_whether_others_slowed_them(measured):
    found = rows(measured)
    assert (found["rtn", "a"]["alone"], found["awq-best", "a"]["alone"]) == (True, False)
    peer = found["lmdeploy", "a"]
    assert (peer["elapsed_s"], peer["alone"], peer["device"]) == (2.0, False, "a GPU")
    assert found["autoround-200", "a"]["reason"] == "not run"
    assert "kl_nats" not in found["autoround-200", "a"]


def test_scores_on_other_windows_are_not_mixed_in(model, measured, tmp_path):
    other = tmp_path / "other.safetensors"
    write_windows(other, 16, calibration=24, b=3, a=4)
    before = (measured / RESULT).read_bytes()
    refused = quality(model, other, measured, "--recipes", "rtn")
    assert refused.returncode == 1
    assert "holds scores of a" in refused.stderr
    assert "give the same --windows, or another --out" in refused.stderr
    assert (measured / RESULT).read_bytes() == before


def test_what_another_machine_wrote_is_taken_in_and_paired(model, measured, tmp_path):
    windows = measured / "windows.safetensors"
    taken = quality(model, windows, tmp_path, "--taken", measured)
    assert taken.returncode == 0, taken.stderr
    assert (tmp_path / SCORES).read_bytes() == (measured / SCORES).read_bytes()
    here, there = rows(tmp_path), rows(measured)
    assert here == {key: row for key, row in there.items() if row["reason"] is None}


# --- seconds and gigabytes


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_floor_of_learned_rounding_counts_its_steps(benchmark, monkeypatch):
    module, length, windows = benchmark("random_model"), 16, 4
    monkeypatch.setitem(module.SHAPES, "tiny", (256, 384, 4, 2, 1))
    config = LlamaConfig(hidden_size=256, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2)
    layer, h = LlamaDecoderLayer(config, 0), torch.randn(windows, length, 256)
    rope = LlamaRotaryEmbedding(config)(h, torch.arange(length)[None])
    weights = [p for name, p in layer.named_parameters() if "norm" not in name]
    with FlopCounterMode(display=False) as step:
        out = layer(h, position_embeddings=rope, attention_mask=None)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out.sum(), weights)
    without, trained = (module.operations("tiny", 0, length, True, 1, trained=n) for n in (0, windows * length))
    assert without == 0
    assert trained == pytest.approx(step.get_total_flops(), rel=0.05)  # which counts attention as if not causal


def test_the_floors_in_the_table_are_those_of_its_rates(benchmark):
    module = benchmark("quantizer_speed")
    for row in json.loads((ROOT / "benchmarks" / "results" / "quantizer_speed.json").read_text()):
        floor = module.floor_s(row["shape"], row["recipe"], row["layers"], row["product_tflops"] * 1e12) / row["gpus"]
        assert row["floor_s"] == pytest.approx(floor, rel=0.01)
        assert row["times_floor"] == pytest.approx(row["elapsed_s"] / row["floor_s"], rel=0.01)


def test_memory_that_no_file_holds_is_seen_while_it_is_held(benchmark):
    peak = benchmark("host_memory").HostPeak()
    before = peak.close()
    peak = benchmark("host_memory").HostPeak()
    held = bytearray(b"x") * 2**29
    time.sleep(0.2)
    del held
    after = peak.close()
    assert after["peak_anonymous_gib"] == pytest.approx(before["peak_anonymous_gib"] + 0.5, abs=0.2)
    assert after["peak_host_gib"] >= after["peak_anonymous_gib"]


def test_a_limit_that_nothing_keeps_is_refused(benchmark, tmp_path, monkeypatch):
    module = benchmark("host_memory")
    nowhere = tmp_path / "cgroup"
    nowhere.write_text("")
    with pytest.raises(SystemExit, match="no control group counts memory here; run it with a limit"):
        module.limited_group(2**30, nowhere).__enter__()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="run torchrun in one"):
        module.run_limited(24, ["true"])
