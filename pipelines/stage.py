"""What every stage shares: its arguments, its errors in one line, and how an artifact comes into being."""

import errno
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from pydantic import JsonValue

from compress.errors import CompressError
from pipelines.params import ParamsError
from registry.card import model_card
from registry.errors import RegistryError
from registry.manifest import MANIFEST, Kind, Manifest, fresh_folder, read, seal, verify
from serving.errors import ServingError

LIBRARIES = ("turbopress", "torch", "transformers")
REFUSED = 1
Rows = Sequence[dict[str, Any]]


def repository_root() -> Path:
    """Where `params.yaml` lies: the folder that DVC names, or the nearest above the working folder that has one.

    Inside an experiment DVC runs stages in a temporary copy, which is the working folder then.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise ParamsError(f"{Path.cwd()}: no params.yaml here or above; run this inside a turbopress repository")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what we refuse, and a full disk, into a line each on stderr and exit status 1."""
    try:
        yield
    except (CompressError, RegistryError, ServingError, ParamsError) as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _refuse(f"{error.filename or 'output'}: the disk is full; free space and run again")


def _refuse(message: str) -> None:
    for line in message.splitlines():
        print(f"turbopress: {line}", file=sys.stderr)
    raise SystemExit(REFUSED)


def run(main: Callable[..., None]) -> None:
    """Runs a stage's main function with its command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with one_line_errors():
        app()


def parent(folder: Path) -> Manifest:
    """The manifest of a stage's input, every byte of which has been checked."""
    return verify(folder)


@contextmanager
def new_artifact(
    out: Path,
    *,
    kind: Kind,
    recipe: Mapping[str, JsonValue],
    parents: Mapping[str, Manifest],
    data: Mapping[str, str],
    seed: int | None,
    origin: Mapping[str, str],
    key: str | None = None,
    made_on: Mapping[str, str | int | bool] | None = None,
) -> Iterator[Path]:
    """Yields a fresh folder to write a model into; afterwards it is carded, sealed and stands whole at `out`.

    With a `key` the folder may hold what a run before this one, with the same key, had done when it was killed.
    """
    digests = {role: manifest.digest for role, manifest in parents.items()}
    with fresh_folder(out, key) as folder:
        yield folder
        card = model_card(
            name=out.name, kind=kind, recipe=recipe, origin=origin, base_model=_hub_id(origin),
            quant_method=_quant_method(folder), parents=digests,
        )  # fmt: skip
        (folder / "README.md").write_text(card, "utf8")
        seal(
            folder, kind=kind, recipe=recipe, parents=digests, data=data, seed=seed, origin=origin, versions=versions(),
            made_on=made_on,
        )  # fmt: skip


def made_already(
    out: Path, recipe: Mapping[str, JsonValue], parents: Mapping[str, str], data: Mapping[str, str]
) -> bool:
    """Whether OUT is, whole, what this recipe makes of these inputs with these libraries."""
    if not (out / MANIFEST).is_file():
        return False
    made = read(out)
    if (made.recipe, made.parents, made.data, made.versions) != (recipe, parents, data, versions()):
        return False
    verify(out)
    return True


def _quant_method(folder: Path) -> str | None:
    """What a written model's own configuration says of its format; None where its weights are plain."""
    said = json.loads((folder / "config.json").read_text("utf8")).get("quantization_config") or {}
    method: str | None = said.get("quant_method")
    return method


def write_trace(folder: Path, rows: Rows, draw: Callable[[Rows, Path], None]) -> None:
    """How a variant was made, in numbers and in a picture: FOLDER/trace.json and trace.png."""
    with fresh_folder(folder) as fresh:
        (fresh / "trace.json").write_text(json.dumps(rows, indent=2) + "\n", "utf8")
        draw(rows, fresh / "trace.png")


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """Yields a sibling of `path` to write: on success it becomes `path`, on any exception it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_name(f".incoming-{path.name}")
    try:
        yield incoming
        os.replace(incoming, path)
    except BaseException as error:
        incoming.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # writing to an open file names none
            error.filename = str(path)
        raise


def _hub_id(origin: Mapping[str, str]) -> str | None:
    """The base's id where it has one: what was fetched at a revision came from a hub."""
    return origin["source"] if origin.get("revision") else None


def versions() -> dict[str, str]:
    """Versions of what decides an artifact's bytes."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def device(number: int = 0) -> str:
    """A GPU by its number, or the CPU where there is none; TURBOPRESS_DEVICE names another."""
    import torch  # noqa: PLC0415 - slow to import, and not every stage computes

    # Products that give the same bits in every run need this before the GPU is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return os.environ.get("TURBOPRESS_DEVICE") or (f"cuda:{number}" if torch.cuda.is_available() else "cpu")
