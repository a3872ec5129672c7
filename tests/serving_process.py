"""`turbopress serve` as a process: started on a small repository, asked, and ended, or refused with its one line."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from serving.client import Client

ROOT = Path(__file__).parents[1]
KEY = "-a-key-that-no-log-shows"  # with a dash, as any option begins
SERVE = (sys.executable, "-m", "pipelines.cli", "serve")


def environment(added):
    return os.environ | {"PYTHONPATH": str(ROOT)} | added


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refused(repository, env, *arguments):
    """The one line with which `serve` ends."""
    done = subprocess.run([*SERVE, *arguments], cwd=repository, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert done.stdout == ""
    return done.stderr


class Served:
    """A running `turbopress serve`."""

    def __init__(self, repository, env, log, *arguments):
        self.port = free_port()
        self.log = log
        command = [*SERVE, *arguments, "--port", str(self.port)]
        command += [] if {"transformers", "--max-batch"} & set(arguments) else ["--max-batch", "4"]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=repository, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ready = self.process.stdout.readline()
        assert self.ready, log.read_text()
        self.client = Client(f"http://127.0.0.1:{self.port}", key=KEY)

    def end(self, number):
        """The exit status after a signal, and the seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        with self.process:  # closes its pipe
            return self.process.wait(60), time.monotonic() - start


def is_server(path, port):
    try:
        words = path.read_bytes().decode().split("\0")
    except OSError:
        return False
    return "api_server" in words and str(port) in words
