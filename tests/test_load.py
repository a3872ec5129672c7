"""The load benchmark: its arithmetic, its loops, and a real server behind it."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_server import transformers_server
from tiny_repository import make_repository

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serving.py"


def _module():
    spec = importlib.util.spec_from_file_location("load_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["load_benchmark"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


load = _module()


async def slow(number):
    """An answer that takes 0.1 s, the third of which fails."""
    await asyncio.sleep(0.1)
    failed = "refused" if number == 2 else ""
    return load.Answer([0.02, 0.05, 0.1], 3, failed, 0.1)


def test_percentiles_are_values_that_were_measured():
    assert load.percentiles(list(range(1, 101))) == {"p50": 50, "p90": 90, "p99": 99}
    assert load.percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert load.percentiles([]) == {}


def test_a_summary_counts_errors_and_leaves_them_out_of_the_times():
    answers = [load.Answer([1.0, 1.5, 3.0], 4, "", 3.0), load.Answer([0.1], 1, "broken", 0.2)]
    told = load.summary(answers, 2.0)
    assert (told["requests"], told["errors"], told["first_error"]) == (2, 1, "broken")
    assert (told["output_tokens"], told["output_tokens_a_second"]) == (4, 2.0)
    assert told["first_token_s"]["p50"] == 1.0
    assert told["between_tokens_s"] == {"p50": 0.5, "p90": 1.5, "p99": 1.5}


def test_a_closed_loop_has_so_many_at_once_and_asks_for_each_once():
    answers, elapsed_s = asyncio.run(load.closed_loop(slow, 4, 8))
    assert len(answers) == 8
    assert 0.2 <= elapsed_s < 0.6
    assert sum(bool(answer.error) for answer in answers) == 1


def test_an_open_loop_does_not_wait_for_answers():
    started = []

    async def one(number):
        started.append(time.perf_counter())
        return await slow(number)

    answers, _ = asyncio.run(load.open_loop(one, 100.0, 20))
    assert len(answers) == 20
    assert started[-1] - started[0] < 20 * 0.1 / 2  # one after another would take two seconds


def test_prompts_differ_and_are_the_same_again():
    assert load.prompt(64, 1) == load.prompt(64, 1) != load.prompt(64, 2)
    assert len(load.prompt(64, 1).split()) == 64


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("repository"))
    with transformers_server(root / "models" / "base", tmp_path_factory.mktemp("log") / "log") as address:
        yield address, str(root / "models" / "base")


@pytest.mark.parametrize(("loop", "load_flag"), [("closed", "--batch"), ("open", "--rate")])
def test_it_drives_a_real_server(server, tmp_path, loop, load_flag):
    address, model = server
    sizes = ("--requests", "4", "--input", "8", "--output", "4", "--plain")
    command = [
        sys.executable,
        SCRIPT,
        loop,
        address,
        load_flag,
        "2",
        "--model",
        model,
        *sizes,
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out").read_text())
    assert (row["requests"], row["errors"]) == (4, 0)
    assert 4 <= row["output_tokens"] <= 16
    assert row["first_token_s"]["p50"] > 0


def test_a_server_that_is_not_there_is_an_error_of_every_request(tmp_path):
    command = [sys.executable, str(SCRIPT), "closed", "http://127.0.0.1:9", "--batch", "2", "--requests", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 errors of 3" in done.stdout
