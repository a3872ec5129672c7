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
from pipelines.params import ParamsError
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


def test_check_writes_a_file_a_source(repository):
    check.main(Path("data/sources"))
    found = {path.name: json.loads(path.read_text()) for path in (repository / "data/sources").iterdir()}
    assert found == {
        "base.json": {name: sha256(name.encode()).hexdigest() for name in ("model/config.json", "model/sub/model.bin")},
        "calibration.json": {"calibration.jsonl": sha256(b"text/calibration.jsonl").hexdigest()},
        "evaluation.json": {"evaluation.jsonl": sha256(b"text/evaluation.jsonl").hexdigest()},
        "distillation.json": {"id": "someone/data-set"},
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
    command = [sys.executable, "-m", "pipelines.check", "data/sources"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert made.stdout == ""
    lines = made.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("turbopress: params.yaml: ") for line in lines)
    assert not (repository / "data").exists()
