"""`turbopress serve --engine llama.cpp`: an OpenAI server on processors alone."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.gguf import told as told_of_file
from pipelines.gguf import write_gguf
from pipelines.profiles import refuse_foreign
from serving.errors import ServingError
from serving.llama_cpp import NAME, SUFFIX, Told, command, require_gguf_file, told
from serving.profile import EngineProfile
from serving.server import Server, forwarding, reachable, require_free

TAKEN = {"session_len", "max_batch_size"}  # of the flags, what llama.cpp is told too


def serve_by_llama_cpp(
    model: str, flags: Mapping[str, object], defaults: EngineProfile, host: str, port: int, timeout_s: float
) -> None:
    """Serves a .gguf file, or a model that is written as one for as long as it is served."""
    refuse_foreign(NAME, flags.keys() - TAKEN)
    profile = defaults.model_copy(update=dict(flags))
    require_free(host, port)
    with _file(model) as (file, longest):
        _require_length(profile.session_len, longest, model)
        name, length = Path(model).name.removesuffix(SUFFIX), profile.session_len or longest
        sessions = profile.max_batch_size or 1
        _serve(model, told(file, name, host, port, session_len=length, sessions=sessions), timeout_s)


@contextmanager
def _file(model: str) -> Iterator[tuple[Path, int | None]]:
    """The GGUF file of a model, and the longest session where we know it."""
    if model.endswith(SUFFIX):
        require_gguf_file(Path(model))
        yield Path(model), None
        return
    with TemporaryDirectory(prefix="turbopress-gguf-") as work:
        file = Path(work) / f"model{SUFFIX}"
        written = write_gguf(model, file)
        print(f"{model}: written as GGUF, {told_of_file(written)}", file=sys.stderr, flush=True)
        yield file, written.context


def _require_length(session_len: int | None, longest: int | None, model: str) -> None:
    if session_len and longest and session_len > longest:
        raise ServingError(f"{model}: session_len {session_len} is longer than the model's {longest} positions")


def _serve(model: str, what: Told, timeout_s: float) -> None:
    address = reachable(what.host, what.port)
    server = Server(command(what), address, sys.stderr, engine=NAME)
    with forwarding(server):
        if server.wait_until_ready(timeout_s):
            cores = f"{what.threads} thread{'s' if what.threads > 1 else ''} of llama.cpp"
            print(f"{model}: ready at {address}/v1, {cores}; talk to it: turbopress chat {address}", flush=True)
        server.wait()
