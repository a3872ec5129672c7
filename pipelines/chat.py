"""`turbopress chat`: with a running server, or with a folder in this process."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.folders import model_folder
from pipelines.params import ParamsError
from pipelines.profiles import default_profile
from registry.manifest import MANIFEST, verify
from serving.client import Client, is_address
from serving.conversation import answer_once, converse
from serving.engine import Engine, Sampling, load_engine
from serving.profile import EngineProfile


def chat(
    model: Annotated[str, typer.Argument(help="http://HOST:PORT, a variant of params.yaml, a folder, or NAME@ALIAS")],
    prompt: Annotated[str | None, typer.Argument(help="answer this once; without it, a conversation")] = None,
    raw: Annotated[bool, typer.Option(help="continue the text as it stands, without chat markup")] = False,
    system: Annotated[str | None, typer.Option(help="a system prompt")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="an image that the prompt is about")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: int = 0,
    engine: Annotated[
        str | None, typer.Option(help="lmdeploy or transformers; the first that can, unless given")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the model's name at the server, where it has several")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON value for programs")] = False,
) -> None:
    """Talk to a running server, or to a stored model in this process; /reset forgets, Ctrl-D ends."""
    require_heard(prompt, raw=raw, system=system, image=image, as_json=as_json)
    speaker, sampling = open_engine(model, engine, name=name), Sampling(max_tokens, temperature, top_p, seed)
    if prompt is None:
        converse(speaker, sampling, raw=raw, system=system)
        return
    text = answer_once(speaker, prompt, sampling, raw=raw, system=system, echo=not as_json, images=image or ())
    if as_json:
        print(json.dumps({"model": model, "prompt": prompt, "text": text}, indent=2, ensure_ascii=False))


def require_heard(
    prompt: str | None, *, raw: bool, system: str | None, image: list[Path] | None, as_json: bool
) -> None:
    """Refuses what would be said to nobody."""
    if prompt is None and (image or as_json):
        flag = "--image" if image else "--json"
        raise ParamsError(f"{flag}: is for one prompt; write it behind the model")
    if raw and (image or system):
        flag = "--image" if image else "--system"
        raise ParamsError(f"--raw {flag}: a text without chat markup has no place for it; leave one of them out")


def open_engine(
    model: str, kind: str | None = None, profile: EngineProfile | None = None, *, name: str | None = None
) -> Engine:
    """Whoever answers for a name that people give: a server for an address, else the verified folder."""
    if is_address(model):
        if kind:
            raise ParamsError(f"--engine {kind}: the server at {model} has its own; leave it out")
        return Client(model, name)
    if name:
        raise ParamsError(f"--name {name}: is for a server that has several models, and {model} is one; leave it out")
    folder = model_folder(model)
    if (folder / MANIFEST).exists():  # any other folder may be talked to as well
        verify(folder)
    return load_engine(folder, profile or default_profile(), kind)
