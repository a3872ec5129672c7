"""Text into token windows: the same documents, tokenizer and seed give the same windows, whose digest names them.

Each document is encoded by itself, with the marks that the model's own tokenizer adds (its BOS, where it has one), so
that a document begins the way the model saw documents begin. The documents of a domain are then laid end to end and
cut into windows without overlap; which of them are taken is a draw by seed. No window mixes domains.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from compress.errors import CompressError
from compress.strict import Strict

DEFAULT_DOMAIN = "text"
FILES = (".jsonl", ".txt", ".parquet")  # any other source is a data set's id or folder


class CorpusRecipe(Strict):
    """Where text comes from and how much of it is taken."""

    source: str = Field(description="a .jsonl, .txt or .parquet file, or a Hugging Face data set id or folder")
    windows: int = Field(ge=1)
    length: int = Field(ge=16, description="tokens of a window")
    seed: int = 0
    split: str = Field("train", description="of a data set id")


@dataclass(frozen=True)
class Document:
    """A text and what kind of text it is."""

    text: str
    domain: str


@dataclass(frozen=True)
class Windows:
    """Token windows (count, length), the domain of each, and the number of the document that each token is from."""

    tokens: np.ndarray
    domains: list[str]
    documents: np.ndarray | None = None  # None in windows made before documents were numbered

    @property
    def digest(self) -> str:
        """sha256 of the token ids: what makes two measurements comparable."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()


def read_documents(recipe: CorpusRecipe, root: Path) -> list[Document]:
    """The documents of a local file, found from `root`, or of a data set id."""
    path = root / recipe.source
    readers = dict(zip(FILES, (_read_jsonl, _read_txt, _read_parquet), strict=True))
    if path.suffix not in FILES:
        return _read_data_set(recipe, root)
    if not path.is_file():
        raise CompressError(f"{path}: not found; data sources are relative to the repository's root")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise CompressError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _read_jsonl(path: Path) -> list[Document]:
    # Lines end at newlines only: JSON may hold the other separators that str.splitlines knows inside a text.
    lines = path.read_text("utf8").removesuffix("\n").split("\n")
    return [_json_document(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _json_document(line: str, place: str) -> Document:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    document = _document(row) if isinstance(row, dict) else None
    if document is None:
        raise CompressError(f'{place}: expected {{"text": "…"}}, found {line[:60]!r}; correct or remove the line')
    return document


def _document(row: Mapping[str, object]) -> Document | None:
    """A row's text and domain, or None where its text is no text."""
    text, domain = row.get("text"), row.get("domain")
    return Document(text, DEFAULT_DOMAIN if domain is None else str(domain)) if isinstance(text, str) else None


def _read_txt(path: Path) -> list[Document]:
    return [Document(path.read_text("utf8"), DEFAULT_DOMAIN)]


def _read_parquet(path: Path) -> list[Document]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import, and few sources need it

    try:
        rows = pq.read_table(path).to_pylist()
    except Exception as error:
        raise CompressError(f"{path}: damaged or no parquet file ({_first_line(error)}); fetch it again") from None
    return _documents(rows, str(path))


def _read_data_set(recipe: CorpusRecipe, root: Path) -> list[Document]:
    import datasets  # noqa: PLC0415 - slow to import, and the demo's sources are local

    folder = root / recipe.source
    try:
        rows = datasets.load_dataset(str(folder) if folder.is_dir() else recipe.source, split=recipe.split)
    except Exception as error:
        raise CompressError(
            f"{recipe.source}: no .jsonl, .txt or .parquet file, and as a data set it does not load "
            f"({_first_line(error)}); correct the source, or connect"
        ) from None
    return _documents(rows, recipe.source)


def _documents(rows: Iterable[Mapping[str, object]], source: str) -> list[Document]:
    """Documents of numbered rows; refuses a row without a text, with its number."""
    documents = []
    for number, row in enumerate(rows):
        document = _document(row)
        if document is None:
            raise CompressError(f"{source}: row {number} has no text in a column 'text', it has {sorted(row)}")
        documents.append(document)
    return documents


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def make_windows(documents: list[Document], tokenizer: Tokenizer, recipe: CorpusRecipe) -> Windows:
    """The windows of a recipe, refused when the text holds fewer than asked for."""
    every = list(_all_windows(documents, tokenizer, recipe.length))
    if len(every) < recipe.windows:
        raise CompressError(
            f"{recipe.source}: holds {len(every)} windows of {recipe.length} tokens, {recipe.windows} asked for; "
            "give a longer text, fewer windows or a shorter length"
        )
    chosen = sorted(random.Random(recipe.seed).sample(range(len(every)), recipe.windows))  # noqa: S311 - not a secret
    domains, tokens, owners = zip(*(every[n] for n in chosen), strict=True)
    return Windows(np.array(tokens, dtype=np.int32), list(domains), np.array(owners, dtype=np.int32))


def _all_windows(
    documents: list[Document], tokenizer: Tokenizer, length: int
) -> Iterator[tuple[str, list[int], list[int]]]:
    """Domain, token ids, and for each token the number of its document."""
    for domain in sorted({document.domain for document in documents}):
        numbers = [n for n, document in enumerate(documents) if document.domain == domain]
        encodings = tokenizer.encode_batch([documents[n].text for n in numbers])
        ids = [token for encoding in encodings for token in encoding.ids]
        owners = [n for n, encoding in zip(numbers, encodings, strict=True) for _ in encoding.ids]
        for start in range(0, len(ids) - length + 1, length):
            yield domain, ids[start : start + length], owners[start : start + length]


def save_windows(windows: Windows, folder: Path) -> None:
    """Writes windows.safetensors and corpus.json into a fresh folder."""
    try:
        numbered = {} if windows.documents is None else {"documents": windows.documents}
        save_file({"tokens": windows.tokens} | numbered, folder / "windows.safetensors")
    except SafetensorError as error:  # the operating system's errors are wrapped in it
        raise CompressError(f"{folder}: not written ({_first_line(error)}); free space and run again") from None
    count, length = windows.tokens.shape
    about = {"sha256": windows.digest, "windows": count, "length": length, "domains": windows.domains}
    (folder / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", "utf8")


def load_windows(folder: Path) -> Windows:
    """What `save_windows` wrote; refuses tokens that are not those that corpus.json names."""
    try:
        about = json.loads((folder / "corpus.json").read_text("utf8"))
        stored = load_file(folder / "windows.safetensors")
        windows = Windows(stored["tokens"], about["domains"], stored.get("documents"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CompressError(f"{folder}: no windows ({_first_line(error)}); run `dvc repro corpus` again") from None
    if windows.digest != about["sha256"]:
        raise CompressError(f"{folder}: token ids do not match corpus.json; run `dvc repro corpus` again")
    return windows
