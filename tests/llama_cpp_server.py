"""llama.cpp's real server on a GGUF file, and what it says to questions that only tests ask."""

import importlib.util
import json
import socket
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from serving.llama_cpp import command, told
from serving.server import Server

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gguf_agreement.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def llama_cpp(file):
    """Its address, while it runs."""
    port = free_port()
    what = told(file, "model", "127.0.0.1", port, session_len=None, sessions=1)
    server = Server(command(what), f"http://127.0.0.1:{port}", engine="llama.cpp")
    try:
        server.wait_until_ready(60)
        yield server.client.address
    finally:
        server.end()


def ask(address, path, **body):
    """The answer to a question of llama.cpp's own."""
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address + path, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


def ids_of(address, text):
    """How llama.cpp reads a text."""
    return ask(address, "/tokenize", content=text, add_special=True, parse_special=True)["tokens"]


def benchmark(monkeypatch):
    """benchmarks/gguf_agreement.py as a module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gguf_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
