"""A model folder to a 4-bit artifact without params.yaml: what `turbopress quantize` does."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.source import resolve
from compress.checkpoint.tokenizer import write_tokenizer
from compress.corpus import ChatTemplate, CorpusRecipe, Windows, make_windows, read_documents
from compress.errors import CompressError
from compress.quantize.recipe import NAMED
from pipelines.corpus import read_tokenizer
from pipelines.params import ParamsError
from pipelines.quantize import Task, make, require_servable, stored_config
from pipelines.stage import Rows, parent
from pipelines.variants import AwqVariant
from registry.errors import RegistryError
from registry.manifest import MANIFEST, Manifest, described


def run(
    model: str, revision: str | None, calibration: str, windows: int, length: int, recipe: AwqVariant, out: Path
) -> None:
    """Writes the artifact, and says what was lost and how it is served."""
    if os.path.lexists(out):
        raise RegistryError(f"{out}: exists already, and nothing is written over; remove it, or give another --to")
    source = _source(model, revision)
    require_servable(stored_config(_plain(source, model), recipe), recipe, model)
    text = _windows(source, CorpusRecipe(source=calibration, windows=windows, length=length))
    task = Task(source, _manifest(source, model, revision), recipe, text, model)
    make(task, out, lambda rows, _: print(_lost(out, rows), file=sys.stderr))
    if (out / MANIFEST).is_file():  # of several processes the first one has made it
        print(f"{out}: ready; serve it: turbopress serve {out.resolve()}")


def recipe_named(name: str, model: str, **settings: str | int) -> AwqVariant:
    """A recipe by its name, with some settings of its own; what no engine takes is refused at its option."""
    if name not in NAMED:
        raise ParamsError(f"--recipe: {name}; choose {' or '.join(NAMED)}")
    try:
        return AwqVariant.model_validate({"from": Path(model).name, **NAMED[name].model_dump(), **settings})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ParamsError(f"--{option}: {message[0].lower()}{message[1:]}, found {first['input']!r}") from None


def _source(model: str, revision: str | None) -> Path:
    if not Path(model).is_dir() and revision is None:
        raise ParamsError(f"{model}: no such folder here; a model on a hub is named with --revision, its commit")
    return resolve(model, revision, Path.cwd())


def _plain(source: Path, model: str) -> Checkpoint:
    checkpoint = Checkpoint(source)
    if checkpoint.quantization:
        raise CompressError(f"{model}: is quantized already; start from its 16-bit original")
    return checkpoint


def _manifest(source: Path, model: str, revision: str | None) -> Manifest:
    """What the model says of itself, or its files: they name what the artifact was made from, wherever it lies."""
    if (source / MANIFEST).is_file():
        return parent(source)
    origin = {"source": model, "revision": revision} if revision else {"source": source.resolve().name}
    return described(source, origin=origin)


def _windows(source: Path, text: CorpusRecipe) -> Windows:
    """The calibration text in the model's tokens, chat messages in its template."""
    with TemporaryDirectory() as folder:
        write_tokenizer(source, Path(folder))
        documents = read_documents(text, Path.cwd(), ChatTemplate.read(Path(folder)))
        return make_windows(documents, read_tokenizer(Path(folder) / "tokenizer.json"), text)


def _lost(out: Path, rows: Rows) -> str:
    linears = [row for row in rows if row["linear"] != "layer"]
    ours, plain = (sum(row[key] for row in linears) / len(linears) for key in ("error", "nearest_error"))
    return f"{out}: its linears lose {100 * ours:.2f} % of their output on average, plain rounding {100 * plain:.2f} %"
