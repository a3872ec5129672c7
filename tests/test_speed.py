"""A model is timed in a process of its own; what was found reaches the gate, and no other machine's column."""

import json
import shutil

import pytest
from fake_measured import speed
from tiny_repository import make_repository

from pipelines.measured import read_local
from pipelines.speed import speed_file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return tmp_path / "here"


def test_a_variant_is_timed_at_every_batch_with_its_peak_memory(turbopress, here):
    status, out, err = turbopress("speed", "awq-w4", "--batches", "1,3", "--json")
    assert status == 0, err
    (found,) = json.loads(out)
    assert found.pop("variant") == "awq-w4"
    assert list(found["batches"]) == ["1", "3"]
    for batch in found["batches"].values():
        assert 0 < batch["slowest_tokens_per_s"] <= batch["tokens_per_s"] <= batch["fastest_tokens_per_s"]
    assert found["peak_bytes"] > 50e6  # Python and torch alone take more
    assert read_local(here, "awq-w4").report["speed"] == found
    assert "speed" not in read_local(here, "base").report
    assert "awq-w4" in turbopress("speed")[1]


def test_engines_and_machines_have_tables_of_their_own(turbopress, here):
    for variant, engine in {"base": "lmdeploy", "awq-w4": "transformers"}.items():
        path = speed_file(here, variant, engine)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(speed(engine=engine) | {"peak_bytes": 2**20}))
    _, out, _ = turbopress("speed")
    tables = out.split("lmdeploy on cpu")
    assert len(tables) == 2
    assert "base" in tables[1].split("transformers on cpu")[0]
    assert "awq-w4" not in tables[1].split("transformers on cpu")[0]


def test_the_page_has_what_was_timed_here_an_engine_a_table(turbopress, here):
    for variant, engine in {"base": "lmdeploy", "awq-w4": "transformers"}.items():
        path = speed_file(here, variant, engine)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(speed(engine=engine) | {"peak_bytes": 2**20}))
    status, out, error = turbopress("compare", "--html", "page.html")
    assert (status, out) == (0, "page.html: opens in any browser, offline\n"), error
    first, second = (here / "page.html").read_text().split("<h2>Speed on this machine</h2>")[1].split("<h3>")[1:]
    assert first.startswith("lmdeploy on cpu")
    assert "<td>base</td>" in first
    assert "<td>awq-w4</td>" not in first
    assert "<td>awq-w4</td>" in second
    assert "tokens/s at batch" in second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "nobody: no model in"),
        (["awq-w4", "--engine", "vllm"], "--engine vllm: choose lmdeploy or transformers"),
        (["awq-w4", "--batches", "0"], "--batches 0: write whole numbers"),
        (["awq-w4", "--batches", "a,b"], "--batches a,b: write whole numbers"),
    ],
)
def test_what_cannot_be_timed_is_one_line(here, turbopress, arguments, words):
    status, out, err = turbopress("speed", *arguments)
    assert (status, out) == (1, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_lmdeploy_s_speed_goes_before_that_of_transformers_at_the_gate(here):
    for engine, rate in (("transformers", 1.0), ("lmdeploy", 2.0)):
        path = speed_file(here, "awq-w4", engine)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(speed(rate, engine=engine)))
        assert read_local(here, "awq-w4").report["speed"]["engine"] == engine
