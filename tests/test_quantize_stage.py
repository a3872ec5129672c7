"""The stage `quantize` as a process: killed and run again, run twice, run by two at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from agreement import LINEAR, MODEL, divergences
from tiny import windows
from tiny_repository import make_base

from compress.errors import CompressError
from compress.quantize.journal import Journal
from pipelines.quantize import main
from registry.manifest import verify

ROOT = Path(__file__).parents[1]
ARGUMENTS = ["awq", "models/base", "data", "models/awq", "traces/awq"]
LAUNCHERS = {  # two processes, on any free port
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
    "accelerate launch": (
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"
    ),
}  # fmt: skip


@pytest.fixture
def repository(tmp_path):
    """A base of four layers, calibration windows and one variant."""
    (tmp_path / "traces").mkdir()
    return make_base(tmp_path, sections={"quantize": {"awq": {"from": "base"}}}, num_hidden_layers=4)


def start(repository, *launcher):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TURBOPRESS_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", *launcher, "pipelines.quantize", *ARGUMENTS]
    return subprocess.Popen(command, cwd=repository, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_a_killed_stage_goes_on_and_leaves_nothing_but_the_model(repository):
    finish(start(repository))
    whole = verify(repository / "models" / "awq").digest
    trace = (repository / "traces" / "awq" / "trace.json").read_bytes()
    for folder in (repository / "models" / "awq", repository / "traces" / "awq"):
        folder.rename(repository / f"first-{folder.parent.name}")
    process = start(repository)
    while not list(repository.glob("models/.awq.journal-*/layer-00001.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (repository / "models" / "awq").exists()
    shard = next(repository.glob("models/.awq.incoming-*/model-00002-of-*"))
    made = shard.stat().st_ino
    finish(start(repository))
    assert verify(repository / "models" / "awq").digest == whole
    assert (repository / "models" / "awq" / shard.name).stat().st_ino == made
    assert (repository / "traces" / "awq" / "trace.json").read_bytes() == trace
    assert sorted(path.name for path in (repository / "models").iterdir()) == ["awq", "base"]


def test_a_finished_stage_run_again_does_nothing_and_other_inputs_are_not_taken_up(repository):
    finish(start(repository))
    weights = repository / "models" / "awq" / "model-00002-of-00006.safetensors"
    before = weights.stat().st_mtime_ns
    finish(start(repository))
    assert weights.stat().st_mtime_ns == before
    values = yaml.safe_load((repository / "params.yaml").read_text())
    values["quantize"]["awq"]["damping"] = 0.3
    (repository / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    _, errors = start(repository).communicate()
    assert "models/awq: exists already, and nothing is written over" in errors


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_two_processes_make_one_model_as_good_as_one_process_does(repository, launcher, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    main(ARGUMENTS[0], *map(Path, ARGUMENTS[1:]))
    one, two, alone = repository / "one", repository / "models" / "awq", losses(repository)
    two.rename(one)
    (repository / "traces" / "awq").rename(repository / "first-traces")
    finish(start(repository, *launcher))
    assert verify(two).made_on == verify(one).made_on | {"workers": 2}
    assert sorted(path.name for path in two.parent.iterdir()) == ["awq", "base"]
    assert losses(repository) == pytest.approx(alone, rel=LINEAR)
    lost, lost_by_two, apart = divergences(two.with_name("base"), one, two, windows(8, seed=3))
    assert lost_by_two == pytest.approx(lost, rel=MODEL)
    assert apart < lost


def losses(repository):
    """What each linear lost, by the trace."""
    return [row["error"] for row in json.loads((repository / "traces" / "awq" / "trace.json").read_text())]


def test_memory_that_runs_out_is_told_in_a_line_with_what_helps_and_nothing_finished_is_lost(repository, monkeypatch):
    finished = Journal.finish

    def run_out(journal, layer, rows):
        finished(journal, layer, rows)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 3 MiB free. See …")

    monkeypatch.chdir(repository)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    monkeypatch.setattr(Journal, "finish", run_out)
    full = r"quantize\.awq: the device's memory is full \(CUDA out of memory\. Tried .* 2\.00 GiB\); write batch: 4 "
    with pytest.raises(CompressError, match=full):
        main(ARGUMENTS[0], *map(Path, ARGUMENTS[1:]))
    assert list(repository.glob("models/.awq.incoming-*/model-00002-of-*"))
    assert list(repository.glob("models/.awq.journal-*/layer-00000.json"))
