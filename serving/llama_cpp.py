"""llama.cpp on a GGUF file: an OpenAI-protocol server for a machine without a GPU, from the package `xllamacpp`."""

import importlib.util
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import ServingError

LAUNCHER = Path(__file__).with_name("launch_llama_cpp.py")
NAME = "llama.cpp"
SUFFIX = ".gguf"
MAGIC = b"GGUF"


@dataclass(frozen=True)
class Told:
    """What the server is told. `context` tokens are for all sessions together; 0 takes the file's own."""

    file: str
    name: str
    host: str
    port: int
    context: int
    sessions: int
    shared: bool  # one KV cache for all sessions, of which each may take what is free; else equal parts
    threads: int


def told(file: Path, name: str, host: str, port: int, *, session_len: int | None, sessions: int) -> Told:
    """One KV cache of `session_len` tokens for each session; of the file's own context, shared, where None."""
    context, shared = (session_len or 0) * sessions, session_len is None
    return Told(str(file), name, host, port, context, sessions, shared, threads())


def threads() -> int:
    """All cores but one: llama.cpp's threads wait for each other, and one that shares its core holds up all."""
    return max(1, len(os.sched_getaffinity(0)) - 1) if sys.platform == "linux" else max(1, (os.cpu_count() or 1) - 1)


def command(what: Told) -> list[str]:
    """The program that serves it; refuses where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ServingError("llama.cpp: not installed; pip install 'turbopress[llama-cpp]'")
    return [sys.executable, str(LAUNCHER), json.dumps(asdict(what))]


def require_gguf_file(path: Path) -> None:
    """Refuses a file that is none."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise ServingError(f"{path}: {error.strerror}; write one: turbopress gguf MODEL --to {path}") from None
    if magic != MAGIC:
        raise ServingError(f"{path}: is no GGUF file; write one: turbopress gguf MODEL --to {path}")
