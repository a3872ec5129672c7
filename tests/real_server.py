"""A real server of the OpenAI protocol that runs anywhere: transformers' own, on a float model."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from serving.client import Client


@contextmanager
def transformers_server(folder, log):
    """Its address, while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", str(folder), "--device", "cpu", "--port", str(port)]
    with log.open("w") as file:
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
    client = Client(f"http://127.0.0.1:{port}")
    for _ in range(600):
        if client.is_healthy() or process.poll() is not None:
            break
        time.sleep(0.2)
    assert client.is_healthy(), log.read_text()
    try:
        yield client.address
    finally:
        process.terminate()
        process.wait(30)
