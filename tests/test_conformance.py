"""The proof in the engine: what passes and what does not, what a gate reads, and the real engine, emulated."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lmdeploy_environment import PROGRAM, emulated, server_interpreter
from tiny_repository import make_repository

from compress.checkpoint.load import load_model
from compress.corpus import Windows, save_windows
from pipelines.proof import Numbers, engine_numbers, judged, our_numbers, what_is_asked
from registry.conformance import Case, Conformance, merged
from registry.manifest import verify

ROOT = Path(__file__).parents[1]
OURS = Numbers([2.0, 3.0], [[1] * 100, [2] * 100], [[5] * 32])


WINDOWS = Windows(np.random.default_rng(0).integers(5, 500, (4, 24), dtype=np.int32), ["words"] * 4)
TOKENS = torch.from_numpy(WINDOWS.tokens).long()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("repository"))
    (root / "data").mkdir()
    save_windows(WINDOWS, root / "data")
    return root


def verdict(theirs):
    return judged(OURS, theirs, layout="llama", bits=16, tp=1)


def test_equal_numbers_pass():
    case = verdict(OURS)
    assert (case.passed, case.reason, case.top1_agreement, case.greedy_agreement) == (True, "", 1.0, 1.0)
    assert case.perplexity == case.engine_perplexity == pytest.approx(math.exp(2.5))


def test_perplexity_beyond_half_a_percent_fails():
    assert verdict(replace(OURS, nll_nats=[2.004, 3.004])).passed
    case = verdict(replace(OURS, nll_nats=[2.006, 3.006]))
    assert not case.passed
    assert case.reason.startswith("perplexity 12.25")


def test_a_nan_fails():
    assert not verdict(replace(OURS, nll_nats=[math.nan, 3.0])).passed


def test_fewer_than_99_of_100_tokens_fail():
    two, three = ([[1] * 98 + [0] * 2, [2] * 100], [[1] * 97 + [0] * 3, [2] * 100])
    assert verdict(replace(OURS, likeliest=two)).passed
    case = verdict(replace(OURS, likeliest=three))
    assert (case.passed, case.reason) == (False, "top-1 agreement 98.50 %")


def test_a_shorter_answer_disagrees_where_it_is_missing():
    assert verdict(replace(OURS, likeliest=[[1] * 100, [2] * 50])).top1_agreement == 0.75


def test_our_numbers_are_the_model_s_own(repository):
    folder = repository / "models" / "awq-w4"
    model = load_model(folder)
    sixteen, four = (our_numbers(model, what_is_asked(folder, TOKENS), bits) for bits in (16, 4))
    with torch.no_grad():
        expected = [model(row[None], labels=row[None]).loss.item() for row in TOKENS]
    assert sixteen.nll_nats == pytest.approx(expected, rel=1e-5)
    assert four.nll_nats != sixteen.nll_nats
    assert four.nll_nats == pytest.approx(expected, rel=0.1)
    assert all(len(said) == 32 for said in sixteen.greedy)


# --- one file of several calls


def written(*ways, passed=True, device="H200", **facts):
    cases = [Case(layout=layout, kv_bits=bits, tp=tp, passed=passed) for layout, bits, tp in ways]
    told = {"artifact": "abc", "engine": "lmdeploy 0.18.0", "windows": "0", "thresholds": {}} | facts
    return Conformance(**told, device=device, passed=passed, cases=cases)


def test_a_later_call_adds_its_ways_and_replaces_its_own():
    first = written(("llama", 16, 1), ("llama", 8, 1), passed=False, refused=["no"])
    both = merged(first, written(("llama", 8, 1), ("llama", 16, 2), device="H100"))
    assert {str(case.way): case.passed for case in both.cases} == {
        "layout llama, KV 16, tp 1": False,
        "layout llama, KV 8, tp 1": True,
        "layout llama, KV 16, tp 2": True,
    }
    assert (both.passed, both.device, both.refused) == (False, "H200, H100", ["no"])
    assert merged(both, written(("llama", 16, 1))).passed


@pytest.mark.parametrize("other", ["artifact", "engine", "windows"])
def test_what_was_asked_of_something_else_is_not_kept(other):
    newer = written(("llama", 8, 1))
    assert merged(written(("llama", 16, 1), **{other: "other"}), newer) == newer
    assert merged(None, newer) == newer


# --- the command


def run(repository, env, *arguments):
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "conformance",
        *arguments,
        "--windows",
        "data",
    ]
    told = os.environ | {"PYTHONPATH": str(ROOT), "TURBOPRESS_DEVICE": "cpu"} | env
    return subprocess.run(command, cwd=repository, env=told, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_proven_and_the_file_says_so(repository):
    done = run(repository, {"LMDEPLOY_PYTHON": sys.executable}, "awq-w4", "--kv", "16", "--tp", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("turbopress: conformance: the engine disagrees on awq-w4")
    proof = json.loads((repository / "reports" / "awq-w4.conformance.json").read_text())
    assert proof["passed"] is False
    assert [case["reason"] for case in proof["cases"]] == ["not run: 0 GPU here"] * 2
    assert proof["artifact"] == verify(repository / "models" / "awq-w4").digest


def test_what_no_server_would_try_is_left_out_with_the_reason(repository):
    run(repository, {"LMDEPLOY_PYTHON": sys.executable}, "awq-w4", "--kv", "8,4", "--tp", "1,3")
    proof = json.loads((repository / "reports" / "awq-w4.conformance.json").read_text())
    assert {(case["kv_bits"], case["tp"]) for case in proof["cases"]} == {(8, 1)}
    four, three = proof["refused"]
    assert four == "quant_policy 4 ends the engine with heads of 64; use 0 or 8"
    assert three.startswith("tp 3 does not divide 4 heads with 2 kv heads; legal are 1, 2")


def test_bits_that_no_cache_has_are_refused(repository):
    done = run(repository, {}, "awq-w4", "--kv", "16,3")
    assert (done.returncode, done.stderr) == (1, "turbopress: --kv: 3; choose of 16, 8 and 4\n")


@pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")
def test_the_real_engine_answers_what_it_is_asked(repository, tmp_path):
    """Its numbers are made up here, but the windows, texts, layouts and its interface are real."""
    folder = repository / "models" / "awq-w4"
    env = emulated(tmp_path / "lmdeploy", server_interpreter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMDEPLOY_PYTHON", env["LMDEPLOY_PYTHON"])
        asked = what_is_asked(folder, TOKENS)
        numbers = engine_numbers(folder, asked, bits=8, tp=1, work=tmp_path)
        assert isinstance(numbers, Numbers), numbers
        assert len(numbers.nll_nats) == 4
        assert [len(row) for row in numbers.likeliest] == [len(ids) for ids in asked.text_ids]
        broken = tmp_path / "empty"
        broken.mkdir()
        (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
        assert "Error" in engine_numbers(broken, asked, bits=8, tp=1, work=tmp_path)
