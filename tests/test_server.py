"""A server that is told to end while its model still loads: a program that sleeps stands for it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from lmdeploy_environment import executable
from serving_process import SERVE, environment, free_port
from tiny_repository import make_repository

from pipelines import llama_cpp
from serving.llama_cpp import Told
from serving.server import SIGNALS

LOADS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); print('loads', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.mark.parametrize("number", SIGNALS)
def test_lmdeploy_that_is_told_to_end_while_it_loads_ends_as_one_that_serves(repository, tmp_path, number):
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA L4, 24576, 500, GPU-0'")
    executable(tmp_path / "python", f'exec {sys.executable} -c "{LOADS}"')
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LMDEPLOY_PYTHON": str(tmp_path / "python")}
    command = [*SERVE, "awq-w4", "--port", str(free_port())]
    with subprocess.Popen(
        command, cwd=repository, env=environment(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stderr.readline() == "loads\n"
        start = time.monotonic()
        serving.send_signal(number)
        assert serving.communicate(timeout=60) == ("", "")
    assert serving.returncode == 0
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("number", SIGNALS)
def test_llama_cpp_that_is_told_to_end_while_it_loads_is_not_said_to_be_ready(monkeypatch, capsys, number):
    monkeypatch.setattr(llama_cpp, "command", lambda what: [sys.executable, "-c", LOADS])
    before = signal.getsignal(number)

    def interrupt():
        while signal.getsignal(number) == before:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    what = Told("a.gguf", "a", "127.0.0.1", free_port(), context=0, sessions=1, shared=True, threads=1)
    llama_cpp._serve("a.gguf", what, timeout_s=30)
    assert "ready" not in capsys.readouterr().out
