"""What is carried to a machine without a network, and what is read back from other programs, is what it was."""

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from house import ROOT
from safetensors.numpy import save_file

from compress.quantize.formats.awq import pack

WINDOWS = np.arange(4 * 8, dtype=np.uint16).reshape(4, 8)


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def windows(benchmark, tmp_path):
    path = tmp_path / "windows.safetensors"
    save_file({"calibration": WINDOWS}, path)
    said = {"calibration": {"sha256": benchmark("quality_windows").digest(WINDOWS)}}
    path.with_suffix(".json").write_text(json.dumps(said))
    return path


# --- windows


def test_windows_are_read_as_they_were_written(benchmark, windows):
    read = benchmark("quality_windows").read_windows(windows)["calibration"]
    assert read.dtype == torch.int64
    assert read.tolist() == WINDOWS.tolist()


def test_windows_other_than_described_are_refused(benchmark, windows):
    save_file({"calibration": WINDOWS + 1}, windows)
    with pytest.raises(SystemExit, match="not the token ids"):
        benchmark("quality_windows").read_windows(windows)


def test_a_draw_takes_whole_windows_without_overlap_and_the_seed_decides(benchmark):
    module = benchmark("quality_windows")
    source = [module.Source("x", "x.txt", 5, seed) for seed in (0, 0, 1)]
    drawn = [module.draw(list(range(83)), each, 8) for each in source]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    assert sorted(drawn[0][:, 0] // 8) == sorted(set(drawn[0][:, 0] // 8))
    assert (drawn[0] - drawn[0][:, :1] == np.arange(8)).all()


def test_too_short_a_text_is_refused(benchmark):
    module = benchmark("quality_windows")
    with pytest.raises(SystemExit, match="2 windows of 8 tokens, 3 wanted"):
        module.draw(list(range(17)), module.Source("x", "x.txt", 3, 0), 8)


# --- SmolLM2's blocks


def test_q4_1_blocks_are_scale_times_code_plus_least(benchmark):
    module = benchmark("carry_smollm2")
    halves = np.array([[0.5, -3.0], [2.0, 1.0]], np.float16)
    nibbles = np.random.default_rng(0).integers(0, 16, (2, 32)).astype(np.uint8)
    words = nibbles[:, :16] | nibbles[:, 16:] << 4
    data = np.concatenate([halves.view(np.uint8), words], axis=1)
    values = module.joined(module.split("Q4_1", data, 1))
    assert values.tolist() == [(nibbles * halves[:, :1] + halves[:, 1:]).ravel().tolist()]


def test_q8_0_blocks_are_scale_times_code(benchmark):
    module = benchmark("carry_smollm2")
    scales = np.array([[0.5], [2.0]], np.float16)
    codes = np.random.default_rng(0).integers(-127, 128, (2, 32)).astype(np.int8)
    data = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1)
    values = module.joined(module.split("Q8_0", data, 2))
    assert values.tolist() == (codes * scales.astype(np.float32)).tolist()


def test_parts_that_are_not_all_there_are_refused(benchmark, tmp_path):
    part = tmp_path / "part-0"
    np.savez_compressed(tmp_path / "whole.npz", x=np.arange(1000))
    part.write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    with pytest.raises(SystemExit, match="bring all, in order"):
        benchmark("carry_smollm2").unpack([part], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what the programs leave


def test_lmdeploy_s_words_are_read_as_compress_packs_them(benchmark):
    codes = torch.randint(0, 16, (16, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(benchmark("peer_programs")._nibbles(pack(codes)).T, codes.int())


def autoround_layer(codes, zeros, scales):
    weight = ((codes - zeros[..., None]) * scales[..., None]).flatten(1).bfloat16()
    return SimpleNamespace(weight=weight, scale=scales.half(), zp=zeros)


def test_autoround_s_codes_are_found_again_in_its_rounded_weights(benchmark):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (8, 3, 64), generator=generator).float()
    zeros = torch.randint(0, 16, (8, 3), generator=generator).float()
    scales = (torch.rand(8, 3, generator=generator) / 10 + 0.01).half().float()
    exact = ((codes - zeros[..., None]) * scales[..., None]).flatten(1)
    read = benchmark("peer_programs")._autoround_weight
    assert torch.equal(read(autoround_layer(codes, zeros, scales)), exact)
    with pytest.raises(ValueError, match="4-bit"):
        read(autoround_layer(codes + 1, zeros, scales))
    with pytest.raises(ValueError, match="4-bit"):
        read(autoround_layer(codes * 0.9, zeros, scales))


def test_a_clock_leaves_out_what_is_set_aside(benchmark):
    clock = benchmark("peer_programs").Clock()
    slow = clock.aside(lambda: __import__("time").sleep(0.3))
    with clock.running():
        slow()
    assert clock.elapsed_s < 0.1


def test_a_program_that_cannot_run_leaves_a_row_with_the_reason(windows, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--model", str(tmp_path / "missing")]
    out = tmp_path / "out"
    subprocess.run([*command, "--windows", str(windows), "--out", str(out), "lmdeploy"], check=True)
    (row,) = json.loads((out / "peers.json").read_text())
    assert row["recipe"] == "lmdeploy"
    assert row["elapsed_s"] is None
    assert row["error"].startswith("exit status 1: ")
    assert not (out / "lmdeploy").exists()


def test_every_peer_has_a_row_that_says_whether_others_slowed_it(benchmark, tmp_path):
    quality = benchmark("quantizer_quality")
    ran = {"error": None, "elapsed_s": 3.0, "device": "a GPU", "calibration": {"sha256": "c0"}}
    peers = [{"recipe": "lmdeploy", "alone": True, **ran}, {"recipe": "autoround-200", "alone": False, **ran}]
    (tmp_path / "peers.json").write_text(json.dumps(peers))
    rows = quality.peer_rows(tmp_path, tmp_path / "none.json", "c0")
    assert set(rows) == set(quality.EXPECTED)
    assert rows["lmdeploy"] == {"elapsed_s": 3.0, "alone": True, "device": "a GPU", "reason": None}
    assert rows["autoround-200"]["alone"] is False
    assert rows["llmcompressor-gptq"]["reason"] == "not run"
    (tmp_path / "before.json").write_text(json.dumps([{"recipe": name} for name in quality.EXPECTED]))
    before = quality.peer_rows(tmp_path, tmp_path / "before.json", "c0")
    assert set(before) == {"lmdeploy", "autoround-200"}
    with pytest.raises(SystemExit, match="lmdeploy: made on other calibration windows"):
        quality.peer_rows(tmp_path, tmp_path / "none.json", "c1")


def test_token_ids_that_16_bits_cannot_hold_are_refused_and_nothing_is_written(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=r"own\.safetensors: token id 65536 of own does not fit in 16 bits"):
        benchmark("quality_windows").store({"own": np.array([[7, 2**16]])}, {"own": {}}, tmp_path / "own.safetensors")
    assert not list(tmp_path.iterdir())
