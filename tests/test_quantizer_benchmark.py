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
from test_resume import quantized
from tiny import CONFIG, write_internlm2
from tiny_repository import write_source
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from compress.quantize import layer as layers
from compress.quantize.recipe import AwqRecipe

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


# --- ingredients


def ablation(model, windows, out, *options):
    command = [sys.executable, "benchmarks/quantizer.py", "ablation", "--model", model, "--windows", windows]
    command = [str(part) for part in [*command, "--out", out, *options]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_each_ingredient_has_a_row_a_draw_and_domain_beside_the_whole_recipe(model, benchmark, tmp_path):
    windows = tmp_path / "windows.safetensors"
    write_windows(windows, 16, calibration=16, a=3, b=4)
    variants = [name for name in benchmark("quantizer_ablation").VARIANTS if name not in {"and learned rounding"}]
    options = ["--num-windows", "8", "--seeds", "0", "1", "--domains", "b", "--held-out", "2", "--recipes", *variants]
    done = ablation(model, windows, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "quantizer_ablation.json").read_text())
    assert [(row["seed"], row["recipe"], row["domain"]) for row in found] == [
        (seed, name, "b") for seed in range(2) for name in variants
    ]
    whole = {row["seed"]: row["kl_nats"] for row in found if row["recipe"] == "whole"}
    assert whole[0] != whole[1]
    for row in found:
        assert np.isclose(row["kl_above_whole"], row["kl_nats"] - whole[row["seed"]])
        assert row["kl_above_whole_low"] <= row["kl_above_whole"] <= row["kl_above_whole_high"]
        assert (row["kl_above_whole"] == 0) == (row["recipe"] == "whole")  # each switch changes something


def test_draws_that_are_nearly_the_same_are_refused(model, tmp_path):
    windows = tmp_path / "windows.safetensors"
    write_windows(windows, 16, calibration=16, a=3)
    refused = ablation(model, windows, tmp_path)
    assert "--num-windows: 128 of 16 calibration windows are nearly the same in every draw; give 8" in refused.stderr
    refused = ablation(model, windows, tmp_path, "--domains", "b")
    assert f"--domains: b: not held out in {windows}; there are a" in refused.stderr


def test_on_float_inputs_what_was_rounded_before_makes_no_difference(model, benchmark, tmp_path):
    switch = benchmark("quantizer_ablation").float_inputs
    recipes = [AwqRecipe(feedback=None), AwqRecipe(feedback=None, scale=None, clip=None)]

    def plain_errors(name):
        return [[e.nearest_error for e in quantized(model, tmp_path / f"{name}{n}", r)] for n, r in enumerate(recipes)]

    one, other = plain_errors("rounded")
    assert one != other
    with switch():
        one, other = plain_errors("float")
    assert one == other


def test_the_factor_of_columns_as_they_come_is_a_factor(benchmark):
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    H = x.t() @ x
    with benchmark("quantizer_ablation").columns_as_they_come():
        factor = layers.factorize(H, "here")
    assert torch.equal(factor.order, torch.arange(32))
    assert torch.allclose(factor.U.t() @ factor.U, H.inverse(), atol=1e-5)
    assert torch.equal(factor.U, factor.U.triu())
    assert torch.allclose(factor.solve(H), torch.eye(32), atol=1e-4)


def test_a_processor_is_timed_in_both_layouts(tmp_path):
    write_source(tmp_path / "model")
    windows = tmp_path / "windows.safetensors"
    write_windows(windows, 16, calibration=4)
    options = ["--model", tmp_path / "model", "--windows", windows, "--out", tmp_path, "--disk", tmp_path]
    command = [sys.executable, "benchmarks/quantizer.py", "cpu", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "quantizer_cpu.json").read_text())
    assert [row["layout"] for row in found] == ["llama", "internlm2"]
    assert all(row["elapsed_s"] > 0 for row in found)
