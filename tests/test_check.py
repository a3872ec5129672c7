"""Stage `check`: a bad `params.yaml` stops before anything runs, and what the sources hold is written down."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from test_params import GOOD, ROOT

from pipelines import check
from pipelines.params import ParamsError, load
from registry.errors import RegistryError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with local sources, in which the stage runs."""
    (tmp_path / "params.yaml").write_text(GOOD)
    for name in ("model/config.json", "model/sub/model.bin", "text/calibration.jsonl", "text/evaluation.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def process(stage, *arguments, cwd):
    """A stage's own process, its output and its exit status."""
    command = [sys.executable, "-m", f"pipelines.{stage}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def digest(text):
    return sha256(text.encode()).hexdigest()


def mixed(repository):
    """The repository with a calibration text of two parts, one of them not there."""
    parts = "[{source: text/calibration.jsonl, weight: 3}, {source: text/more.txt}]"
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("text/calibration.jsonl", parts, 1))


def test_a_text_that_dvc_would_not_find_is_asked_for(repository):
    (repository / "params.yaml").write_text(GOOD.replace(", data: calibration", "", 2))
    with pytest.raises(ParamsError) as error:
        check.main(Path("data/sources"))
    assert str(error.value).splitlines() == [
        f"params.yaml: {place}.data: missing; write data: calibration, or another text"
        for place in ("prune.shallow", "quantize.awq-w4")
    ]


def test_every_part_of_a_mix_is_looked_at_by_its_place(repository):
    mixed(repository)
    with pytest.raises(ParamsError) as error:
        check.main(Path("data/sources"))
    assert str(error.value) == f"params.yaml: data.calibration.source.1.source: text/more.txt not found in {repository}"
    (repository / "text" / "more.txt").write_text("more")
    check.main(Path("data/sources"))
    assert json.loads(Path("data/sources/calibration.json").read_text()) == {
        "text/calibration.jsonl": {"calibration.jsonl": digest("text/calibration.jsonl")},
        "text/more.txt": {"more.txt": digest("more")},
    }
    (repository / "text" / "more.txt").write_text("other")
    (line,) = check.changed_sources(repository, load(repository), Path("data/sources"))
    assert line.startswith("params.yaml: data.calibration.source.1.source: text/more.txt has changed since it was read")


def test_check_writes_a_file_a_source(repository):
    check.main(Path("data/sources"))
    found = {path.name: json.loads(path.read_text()) for path in (repository / "data/sources").iterdir()}
    assert found == {
        "base.json": {"model": {name: digest(name) for name in ("model/config.json", "model/sub/model.bin")}},
        "calibration.json": {"text/calibration.jsonl": {"calibration.jsonl": digest("text/calibration.jsonl")}},
        "evaluation.json": {"text/evaluation.jsonl": {"evaluation.jsonl": digest("text/evaluation.jsonl")}},
        "distillation.json": {"someone/data-set": {"id": "someone/data-set"}},
    }


def test_check_refuses_text_files_that_are_not_there_all_at_once(repository):
    for name in ("calibration", "evaluation"):
        (repository / "text" / f"{name}.jsonl").unlink()
    with pytest.raises(ParamsError) as error:
        check.main(Path("data/sources"))
    assert str(error.value).splitlines() == [
        f"params.yaml: data.{name}.source: text/{name}.jsonl not found in {repository}"
        for name in ("calibration", "evaluation")
    ]


def test_check_refuses_an_old_mlflow_file_store(repository):
    (repository / "mlruns" / "0").mkdir(parents=True)
    (repository / "mlruns" / "0" / "meta.yaml").touch()
    with pytest.raises(RegistryError, match=r"mlruns: is an MLflow file store"):
        check.main(Path("data/sources"))
    assert not (repository / "data").exists()


def test_a_bad_file_ends_the_stage_with_lines_on_stderr_and_nothing_written(repository):
    bad = GOOD.replace("from: student,", "from: bass, sauce: 1,").replace("windows: 8", "windows: 0", 1)
    (repository / "params.yaml").write_text(bad)
    made = process("check", "data/sources", cwd=repository)
    assert made.returncode == 1
    assert made.stdout == ""
    lines = made.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("turbopress: params.yaml: ") for line in lines)
    assert not (repository / "data").exists()


@pytest.mark.parametrize(
    ("place", "source", "file"),
    [("base", "model", "model/sub/model.bin"), ("data.evaluation", "text/evaluation.jsonl", "text/evaluation.jsonl")],
)
def test_a_local_source_that_changed_since_is_named_and_one_that_was_put_back_is_not(repository, place, source, file):
    check.main(Path("data/sources"))
    params, before = load(repository), (repository / file).read_bytes()
    assert check.changed_sources(repository, params, Path("data/sources")) == []
    for change in (lambda path: path.write_bytes(before + b"!"), Path.unlink):
        change(repository / file)
        assert check.changed_sources(repository, params, Path("data/sources")) == [
            f"params.yaml: {place}.source: {source} has changed since it was read; run `dvc repro --force check`, "
            "then `dvc repro`"
        ]
    (repository / file).write_bytes(before)
    assert check.changed_sources(repository, params, Path("data/sources")) == []


def test_a_file_that_joined_the_base_is_a_change(repository):
    check.main(Path("data/sources"))
    (repository / "model" / "tokenizer.json").touch()
    (line,) = check.changed_sources(repository, load(repository), Path("data/sources"))
    assert line.startswith("params.yaml: base.source: model has changed")


def test_the_look_up_of_the_base_refuses_to_go_on_with_changed_sources(repository):
    check.main(Path("data/sources"))
    for name in ("calibration", "evaluation"):
        (repository / "text" / f"{name}.jsonl").write_text("other")
    made = process(
        "register", "base", "models/base", "reports/base.json", "plot.png", "--sources", "data/sources", cwd=repository
    )
    assert (made.returncode, made.stdout) == (1, "")
    lines = made.stderr.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["turbopress", "params.yaml", f"data.{name}.source"] for name in ("calibration", "evaluation")
    ]
    assert not (repository / "mlflow.db").exists()
