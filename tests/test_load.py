"""The load benchmark: its arithmetic, its loops, and a real server behind it."""

import argparse
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
CLIENT = SCRIPT.with_name("load.py")


def _module():
    spec = importlib.util.spec_from_file_location("load_benchmark", CLIENT)
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
    told = load.summary(answers, 4.0)
    assert (told["requests"], told["errors"], told["first_error"]) == (2, 1, "broken")
    assert (told["output_tokens"], told["output_tokens_a_second"]) == (4, 1.0)
    assert told["first_token_s"]["p50"] == 1.0
    assert told["between_tokens_s"] == {"p50": 0.5, "p90": 1.5, "p99": 1.5}


def test_a_closed_loop_has_so_many_at_once_and_asks_for_each_once():
    start = time.perf_counter()
    answers = asyncio.run(load.closed_loop(slow, 4, 8))
    assert len(answers) == 8
    assert 0.2 <= time.perf_counter() - start < 0.6
    assert sum(bool(answer.error) for answer in answers) == 1


def test_an_open_loop_does_not_wait_for_answers():
    started = []

    async def one(number):
        started.append(time.perf_counter())
        return await slow(number)

    answers = asyncio.run(load.open_loop(one, 100.0, 20))
    assert len(answers) == 20
    assert [answer.asked_s for answer in answers] == sorted(answer.asked_s for answer in answers)
    assert started[-1] - started[0] < 20 * 0.1 / 2  # one after another would take two seconds


def test_a_loop_of_some_seconds_begins_no_answer_behind_them():
    start = time.perf_counter()
    closed = asyncio.run(load.closed_loop(slow, 4, None, 0.35))
    opened = asyncio.run(load.open_loop(slow, 50.0, None, 0.3, seed=1))
    assert time.perf_counter() - start < 2
    assert 12 <= len(closed) <= 16
    assert all(answer.asked_s <= 0.35 for answer in closed)
    assert 5 <= len(opened) <= 30
    assert all(answer.asked_s <= 0.3 for answer in opened)


def test_what_came_behind_the_end_of_a_run_counts_for_no_speed():
    """Two answers of four tokens: one whole in the two seconds, of the other half of its pieces."""
    inside, late = load.Answer([0.5, 1.0], 4, "", 1.0, 0.0), load.Answer([0.5, 1.5], 4, "", 1.5, 1.0)
    told = load.summary([inside, late], 2.0)
    assert (told["output_tokens"], told["output_tokens_a_second"]) == (8, 3.0)
    assert told["requests_a_second"] == 0.5


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


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("serving_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_a_comparison_drives_closed_loops_and_then_open_ones_at_shares_of_their_rate(server, benchmark):
    """Against a real server on a CPU, for a second each: it loads as it would LMDeploy."""
    address, model = server
    benchmark.OPEN_S = 1.0
    options = argparse.Namespace(
        batch=[1, 2], seconds=1.0, requests=None, clients=2, input=8, output=4, patience=60.0, seed=0, plain=True
    )
    rows = list(benchmark.loaded(options, address, model))
    assert [(row["loop"], row.get("batch"), row.get("share")) for row in rows] == [
        ("closed", 1, None), ("closed", 2, None), ("open", None, 0.5), ("open", None, 0.8), ("open", None, 1.0),
    ]  # fmt: skip
    best = max(row["output_tokens_a_second"] / 4 for row in rows if row["loop"] == "closed")  # unfinished answers too
    assert [row["rate"] for row in rows[2:]] == pytest.approx([0.5 * best, 0.8 * best, best])
    assert [row["clients"] for row in rows] == [1, 2, 2, 2, 2]
    assert not any(row["errors"] for row in rows)
    assert all(row["first_token_s"]["p99"] > 0 for row in rows[:2])


def test_a_server_that_is_not_there_is_an_error_of_every_request(tmp_path):
    command = [sys.executable, str(SCRIPT), "closed", "http://127.0.0.1:9", "--batch", "2", "--requests", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 errors of 3" in done.stdout
