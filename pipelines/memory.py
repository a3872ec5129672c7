"""`turbopress memory`: what serving a model will take of a GPU, from its config.json alone."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipelines.folders import configuration
from pipelines.params import ParamsError
from pipelines.remote import remote_configuration
from serving.choices import Choice, Load, choices, choose, in_4_bits
from serving.gpus import gpus, parse_size, show_size
from serving.memory import plan
from serving.picture import picture
from serving.profile import EngineProfile, KvBits, batched, fitted
from serving.shape import Shape, read_shape

KV: dict[str, KvBits] = {"none": 0, "16": 0, "fp16": 0, "int8": 8, "8": 8, "int4": 4, "4": 4}


def memory(
    model: Annotated[
        str, typer.Argument(help="a variant, a folder, a config.json, NAME@ALIAS, or ORG/NAME with --revision")
    ],
    gpu: Annotated[str | None, typer.Option(help="the card's memory, as 24GiB; this machine's, unless given")] = None,
    card: Annotated[str, typer.Option(help="its name, as H200: by that LMDeploy chooses --max-batch")] = "",
    cache: Annotated[float, typer.Option(help="share of the free memory for the KV cache")] = 0.8,
    kv: Annotated[str, typer.Option(help="none, int8 or int4")] = "none",
    weights: Annotated[str | None, typer.Option(help="16bit or 4bit; as stored, unless given")] = None,
    tp: Annotated[int, typer.Option(help="GPUs that share the model")] = 1,
    session_len: Annotated[int | None, typer.Option(help="tokens of a session; the model's own, unless given")] = None,
    max_batch: Annotated[int | None, typer.Option(help="sessions at once; LMDeploy's own, unless given")] = None,
    load: Annotated[str | None, typer.Option(help="what it must hold, as 32x4096: sessions x tokens")] = None,
    revision: Annotated[str | None, typer.Option(help="of ORG/NAME on Hugging Face, the commit to ask")] = None,
    table: Annotated[bool, typer.Option("--table", help="print every way to serve it on this card")] = False,
    to: Annotated[Path | None, typer.Option("--picture", help="draw them to this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON value for programs")] = False,
) -> None:
    """Plan the memory of a server: weights, KV cache, workspace, and how many tokens and sessions fit."""
    shape = read_shape(remote_configuration(model, revision) if revision else configuration(model))
    gpu_bytes, card = (parse_size(gpu), card) if gpu else _this_machine_s(tp, card)
    bits = _bits(weights, shape)
    stored = in_4_bits(shape) if bits == 4 < shape.bits else shape
    profile = batched(fitted(engine_profile(cache, kv, tp, session_len, max_batch), stored, model), card)
    planned = plan(stored, profile, gpu_bytes, bits)
    chosen = Choice(bits, profile, planned)
    rows = choices(shape, profile, planned.gpu_bytes)
    wanted = _load(load) if load else None
    best = choose(rows, wanted) if wanted else None
    length = wanted.length if wanted else profile.session_len or 0
    if to:
        picture(rows, to)
    if as_json:
        value: dict[str, Any] = {
            **planned.as_dict(),
            "missing_bytes": planned.missing_bytes,
            "sessions": planned.sessions(length or 1),
        }
        value |= {"session_tokens": length}
        value |= {"choices": [_row(row) for row in rows]} if table else {}
        value |= {"choice": best and _row(best)} if wanted else {}
        print(json.dumps(value, indent=2))
        return
    _tell(model, chosen, length, [row.weight_bits for row in rows])
    if table:
        Console(width=120).print(_table(rows, length))
    if wanted:
        print(_advice(wanted, best))


def engine_profile(
    cache: float, kv: str, tp: int, session_len: int | None, max_batch: int | None, prefix_caching: bool = False
) -> EngineProfile:
    """The profile that flags ask for."""
    if kv not in KV:
        raise ParamsError(f"--kv: {kv}; choose none, int8 or int4")
    if not 0 < cache < 1:
        raise ParamsError(f"--cache: {cache}; choose a share between 0 and 1")
    if min(tp, session_len or 1, max_batch or 1) < 1:
        raise ParamsError("--tp, --session-len, --max-batch: choose 1 or more")
    return EngineProfile(
        cache_max_entry_count=cache, quant_policy=KV[kv], tp=tp, session_len=session_len, max_batch_size=max_batch,
        enable_prefix_caching=prefix_caching,
    )  # fmt: skip


def _this_machine_s(tp: int, card: str) -> tuple[int, str]:
    """Free bytes and name of the smallest card that a server with `tp` of them would take."""
    cards = sorted(gpus()[:tp], key=lambda found: found.free_bytes)
    if not cards:
        raise ParamsError("--gpu: this machine shows no GPU to plan for; say what the server has, as --gpu 24GiB")
    return cards[0].free_bytes, card or cards[0].name


def _bits(weights: str | None, shape: Shape) -> int:
    if weights is None:
        return shape.bits
    match = re.fullmatch(r"(16|4)(-?bits?)?", weights)
    if match is None:
        raise ParamsError(f"--weights: {weights}; choose 4bit or 16bit")
    return int(match[1])


def _load(text: str) -> Load:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or not int(match[1]) * int(match[2]):
        raise ParamsError(f"--load: {text}; write sessions x tokens, as 32x4096")
    return Load(int(match[1]), int(match[2]))


def _tell(model: str, choice: Choice, length: int, weight_bits: Sequence[int]) -> None:
    planned = choice.plan
    cards = f"each of {choice.profile.tp} GPUs" if choice.profile.tp > 1 else "the GPU"
    print(f"{model}: {show_size(planned.total_bytes)} of the {show_size(planned.gpu_bytes)} of {cards}")
    parts = {"weights": planned.weights_bytes, "KV cache": planned.kv_cache_bytes}
    parts |= {"workspace": planned.workspace_bytes, "CUDA and kernels": planned.context_bytes}
    for name, size in parts.items():
        print(f"  {name:<18}{show_size(size):>12}")
    print(f"  {planned.tokens:,} tokens fit, {planned.token_bytes:,} bytes each:", end=" ")
    print(f"{planned.sessions(length):,} sessions of {length:,}")
    if planned.missing_bytes:
        other = "store weights in 4 bits" if min(weight_bits) < choice.weight_bits else "use a larger card"
        print(f"  too small by {show_size(planned.missing_bytes)}: lower --cache, or {other}")


def _advice(load: Load, best: Choice | None) -> str:
    what = f"{load.sessions} sessions of {load.length:,} tokens"
    if best is None:
        return f"{what} fit in no way on this card; use a larger one, or --tp"
    return f"{what}: {best.weight_bits}-bit weights, {best.flags} ({show_size(best.plan.total_bytes)})"


def _row(choice: Choice) -> dict[str, Any]:
    told = choice.profile
    return {
        "weight_bits": choice.weight_bits,
        "kv_bits": told.quant_policy or 16,
        "cache": told.cache_max_entry_count,
        "fits": choice.fits,
        **choice.plan.as_dict(),
    }


def _table(rows: list[Choice], length: int) -> Table:
    table = Table("weights", "KV", "cache", "takes", "tokens", f"sessions of {length:,}")
    for row in rows:
        planned = row.plan
        cells = (show_size(planned.total_bytes), f"{planned.tokens:,}", f"{planned.sessions(length):,}")
        told = (f"{row.weight_bits}-bit", str(row.profile.quant_policy or 16), f"{row.profile.cache_max_entry_count:g}")
        table.add_row(*told, *(cells if row.fits else (f"{cells[0]}: too much", "", "")))
    return table
