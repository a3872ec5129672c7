"""`turbopress serve`: an OpenAI server on a verified artifact, LMDeploy's with its memory known before it starts."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.folders import model_folder
from pipelines.llama_cpp import serve_by_llama_cpp
from pipelines.memory import KV
from pipelines.params import ParamsError
from pipelines.profiles import default_profile, refuse_foreign
from registry.manifest import MANIFEST, verify
from serving.choices import choices
from serving.client import API_KEY
from serving.engine import load_engine
from serving.errors import ServingError
from serving.gpus import Gpu, gpus, show_size
from serving.memory import MemoryPlan, plan
from serving.profile import EngineProfile, backend, batched, command, fitted, require_lmdeploy_s
from serving.server import (
    LAST_PORT,
    LOOPBACK,
    PORT,
    Server,
    forwarding,
    interpreter,
    lmdeploy_command,
    reachable,
    require_free,
    require_right_way_up,
)
from serving.shape import Shape, read_shape

ENGINES = ("lmdeploy", "llama.cpp", "transformers")


def serve(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS, a variant of params.yaml, or a folder")],
    cache: Annotated[float | None, typer.Option(help="share of the free memory for the KV cache")] = None,
    kv: Annotated[str | None, typer.Option(help="none, int8 or int4")] = None,
    tp: Annotated[int | None, typer.Option(help="GPUs")] = None,
    session_len: Annotated[int | None, typer.Option(help="tokens of prompt and answer")] = None,
    max_batch: Annotated[int | None, typer.Option(help="sequences at once")] = None,
    prefix_caching: Annotated[bool | None, typer.Option(help="share the cache of equal beginnings")] = None,
    host: Annotated[str, typer.Option(help="who may connect; this machine alone, unless told otherwise")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=LAST_PORT)] = PORT,
    timeout: Annotated[float, typer.Option(help="seconds until it must answer")] = 600.0,
    engine: Annotated[
        str, typer.Option(help="lmdeploy; without a GPU llama.cpp (NAME, FOLDER or a .gguf file) or transformers")
    ] = "lmdeploy",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print LMDeploy's command line, and start nothing")
    ] = False,
) -> None:
    """Start an OpenAI-protocol server on an artifact. TURBOPRESS_API_KEY, where set, is asked of every client."""
    if engine not in ENGINES:
        raise ParamsError(f"--engine: {engine}; choose {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    if dry_run and engine != "lmdeploy":
        raise ParamsError(f"--dry-run: prints LMDeploy's command line, and {engine} has none; leave one of them out")
    flags = _flags(cache, kv, tp, session_len, max_batch, prefix_caching)
    if engine == "llama.cpp":
        serve_by_llama_cpp(model, flags, default_profile(), host, port, timeout)
        return
    folder = model_folder(model)
    if (folder / MANIFEST).exists():
        verify(folder)
    if engine == "transformers":
        refuse_foreign(engine, flags)
        require_free(host, port)
        _serve_here(folder, model, host, port)
        return
    shape = read_shape(folder)
    profile = fitted(default_profile().model_copy(update=flags), shape, model)
    require_lmdeploy_s(shape, model)
    cards = gpus()
    profile = batched(profile, cards[0].name) if cards else profile
    told = command(profile, folder, host=host, port=port, model_name=_served_name(model), backend=backend(shape))
    if dry_run:
        print(shlex.join(["lmdeploy", *told]))
        return
    require_free(host, port)
    planned = require_memory(shape, profile, cards, model)
    require_right_way_up(interpreter(), shape)
    address = reachable(host, port)
    server = Server(lmdeploy_command(told), address, sys.stderr)
    with forwarding(server):
        if server.wait_until_ready(timeout):
            print(_ready(model, address, planned), flush=True)
        server.wait()


def _serve_here(folder: Path, model: str, host: str, port: int) -> None:
    """Serves from this process, without a GPU: slowly, and the same answers."""
    from serving import local_server  # noqa: PLC0415 - a web server is slow to import

    loaded = load_engine(folder, EngineProfile(), "transformers")
    print(f"{model}: ready at http://{host}:{port}/v1, one answer at a time", flush=True)
    local_server.run(loaded, name=_served_name(model), host=host, port=port, key=os.environ.get(API_KEY))


def require_memory(shape: Shape, profile: EngineProfile, cards: list[Gpu], place: str) -> MemoryPlan:
    """What the server will take of each card; refused where there are too few, or where they are too small."""
    if not cards:
        remedy = f"without one: turbopress serve {place} --engine llama.cpp, or --engine transformers"
        raise ServingError(f"{place}: LMDeploy needs a GPU and this machine shows none; {remedy}")
    if len(cards) < profile.tp:
        raise ServingError(f"{place}: tp {profile.tp} needs {profile.tp} GPUs and there are {len(cards)}; lower --tp")
    smallest = min(cards[: profile.tp], key=lambda card: card.free_bytes)
    planned = plan(shape, profile, smallest.free_bytes)
    if planned.missing_bytes or not planned.tokens:
        raise ServingError(f"{place}: {_too_small(shape, profile, smallest, planned)}")
    return planned


def _too_small(shape: Shape, profile: EngineProfile, card: Gpu, planned: MemoryPlan) -> str:
    missing = f"{show_size(planned.missing_bytes)} more than" if planned.missing_bytes else "all of"
    needs = f"takes {show_size(planned.total_bytes)}, {missing} the {show_size(card.free_bytes)} free on {card.name}"
    fitting = [row for row in choices(shape, profile, card.free_bytes) if row.fits and row.weight_bits == shape.bits]
    if fitting:
        return f"{needs}; this would fit: {fitting[0].flags}"
    four_bits = [row for row in choices(shape, profile, card.free_bytes) if row.fits]
    return f"{needs}; " + (
        f"its 4-bit variant would fit: {four_bits[0].flags}" if four_bits else "use a larger card or --tp"
    )


def _flags(
    cache: float | None, kv: str | None, tp: int | None, session_len: int | None, max_batch: int | None,
    prefix_caching: bool | None,
) -> dict[str, object]:  # fmt: skip
    if kv is not None and kv not in KV:
        raise ParamsError(f"--kv: {kv}; choose none, int8 or int4")
    if cache is not None and not 0 < cache < 1:
        raise ParamsError(f"--cache: {cache:g}; choose a share between 0 and 1")
    if min(value for value in (tp, session_len, max_batch, 1) if value is not None) < 1:
        raise ParamsError("--tp, --session-len, --max-batch: choose 1 or more")
    given = {
        "cache_max_entry_count": cache,
        "quant_policy": KV[kv] if kv is not None else None,
        "tp": tp,
        "session_len": session_len,
        "max_batch_size": max_batch,
        "enable_prefix_caching": prefix_caching,
    }
    return {key: value for key, value in given.items() if value is not None}


def _served_name(model: str) -> str:
    return Path(model).name


def _ready(model: str, address: str, planned: MemoryPlan) -> str:
    takes = f"takes {show_size(planned.total_bytes)} of the GPU, remembers {planned.tokens:,} tokens"
    return f"{model}: ready at {address}/v1, {takes}; talk to it: turbopress chat {address}"
