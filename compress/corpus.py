"""Text into token windows: the same documents, tokenizer and seed give the same windows, whose digest names them.

Each document is encoded by itself, with the marks that the model's own tokenizer adds (its BOS, where it has one), so
that a document begins the way the model saw documents begin. The documents of a domain are then laid end to end and
cut into windows without overlap; which of them are taken is a draw by seed. No window mixes domains.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from compress.errors import CompressError
from compress.strict import Strict

DEFAULT_DOMAIN = "text"


class CorpusRecipe(Strict):
    """Where text comes from and how much of it is taken."""

    source: str = Field(description="a .jsonl, .txt or .parquet file, or a Hugging Face data set id")
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
    """Token windows (count, length) and the domain of each."""

    tokens: np.ndarray
    domains: list[str]

    @property
    def digest(self) -> str:
        """sha256 of the token ids: what makes two measurements comparable."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()


def read_documents(recipe: CorpusRecipe, root: Path) -> list[Document]:
    """The documents of a local file, found from `root`, or of a data set id."""
    path = root / recipe.source
    readers = {".jsonl": _read_jsonl, ".txt": _read_txt, ".parquet": _read_parquet}
    if path.suffix in readers:
        if not path.is_file():
            raise CompressError(f"{path}: not found; data sources are relative to the repository's root")
        return readers[path.suffix](path)
    return _read_data_set(recipe)


def _read_jsonl(path: Path) -> list[Document]:
    documents = []
    for number, line in enumerate(path.read_text("utf8").splitlines(), 1):
        try:
            row = json.loads(line)
            documents.append(Document(str(row["text"]), str(row.get("domain", DEFAULT_DOMAIN))))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise CompressError(f'{path}:{number}: expected {{"text": …}}, found {line[:60]!r}') from None
    return documents


def _read_txt(path: Path) -> list[Document]:
    return [Document(path.read_text("utf8"), DEFAULT_DOMAIN)]


def _read_parquet(path: Path) -> list[Document]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import, and few sources need it

    table = pq.read_table(path)
    if "text" not in table.column_names:
        raise CompressError(f"{path}: no column 'text', found {table.column_names}; rename the one that holds the text")
    return [Document(str(text), DEFAULT_DOMAIN) for text in table["text"].to_pylist()]


def _read_data_set(recipe: CorpusRecipe) -> list[Document]:
    import datasets  # noqa: PLC0415 - slow to import, and the demo's sources are local

    try:
        rows = datasets.load_dataset(recipe.source, split=recipe.split)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise CompressError(f"{recipe.source}: neither a local file nor a data set that loads ({reason})") from None
    return [Document(str(row["text"]), DEFAULT_DOMAIN) for row in rows]


def make_windows(documents: list[Document], tokenizer: Tokenizer, recipe: CorpusRecipe) -> Windows:
    """The windows of a recipe, refused when the text holds fewer than asked for."""
    every = list(_all_windows(documents, tokenizer, recipe.length))
    if len(every) < recipe.windows:
        raise CompressError(
            f"{recipe.source}: holds {len(every)} windows of {recipe.length} tokens, {recipe.windows} asked for; "
            "give a longer text, fewer windows or a shorter length"
        )
    chosen = sorted(random.Random(recipe.seed).sample(range(len(every)), recipe.windows))  # noqa: S311 - not a secret
    return Windows(np.array([every[n][1] for n in chosen], dtype=np.int32), [every[n][0] for n in chosen])


def _all_windows(documents: list[Document], tokenizer: Tokenizer, length: int) -> Iterator[tuple[str, list[int]]]:
    for domain in sorted({document.domain for document in documents}):
        texts = [document.text for document in documents if document.domain == domain]
        ids = [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids]
        for start in range(0, len(ids) - length + 1, length):
            yield domain, ids[start : start + length]


def save_windows(windows: Windows, folder: Path) -> None:
    """Writes windows.safetensors and corpus.json into a fresh folder."""
    save_file({"tokens": windows.tokens}, folder / "windows.safetensors")
    count, length = windows.tokens.shape
    about = {"sha256": windows.digest, "windows": count, "length": length, "domains": windows.domains}
    (folder / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", "utf8")


def load_windows(folder: Path) -> Windows:
    """What `save_windows` wrote; refuses tokens that are not those that corpus.json names."""
    about = json.loads((folder / "corpus.json").read_text("utf8"))
    windows = Windows(load_file(folder / "windows.safetensors")["tokens"], about["domains"])
    if windows.digest != about["sha256"]:
        raise CompressError(f"{folder}: token ids do not match corpus.json; run `dvc repro corpus` again")
    return windows
