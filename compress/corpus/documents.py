"""The documents of a source: rows of text or of chat messages, in a file or a data set.

A row has a text in `text`, or a conversation in `messages`, which is read where a row has both; `domain` says what kind
of text it is. A row that has neither is refused with its place: a corpus that silently shrank measures something else.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from compress.corpus.chat import ChatTemplate, Span
from compress.corpus.recipe import FILES, CorpusRecipe, Part
from compress.errors import CompressError, first_line

DEFAULT_DOMAIN = "text"
Row = Mapping[str, object]
Rows = Iterator[tuple[str, Row]]  # each with its place


@dataclass(frozen=True)
class Document:
    """A text, what kind of text it is, and which part of a mix it belongs to.

    `marked` says that the text already holds its special tokens; `answers` are the spans of characters that count,
    None where all do.
    """

    text: str
    domain: str
    part: int = 0
    marked: bool = False
    answers: tuple[Span, ...] | None = None


def read_documents(recipe: CorpusRecipe, root: Path, template: ChatTemplate | None = None) -> list[Document]:
    """The documents of all parts of a recipe, local files found from `root`; `template` renders chat messages."""
    documents = []
    for number, part in enumerate(recipe.parts):
        of_part = [_document(row, place, number, part, recipe, template) for place, row in _rows(part, root)]
        documents += [_joined(of_part, part)] if part.joined else of_part
    return documents


def _joined(pieces: list[Document], part: Part) -> Document:
    """The one text that the rows are pieces of."""
    if any(piece.marked for piece in pieces):
        raise CompressError(f"{part.source}: conversations are no pieces of one text; leave joined out")
    if len(domains := sorted({piece.domain for piece in pieces})) != 1:
        named = ", ".join(domains) or "no rows"
        raise CompressError(f"{part.source}: rows of {named} are no pieces of one text; leave joined out")
    return replace(pieces[0], text="\n\n".join(piece.text for piece in pieces))


def _document(
    row: Row, place: str, number: int, part: Part, recipe: CorpusRecipe, template: ChatTemplate | None
) -> Document:
    named, unnamed = row.get("domain"), Path(part.source).stem if recipe.is_mix else DEFAULT_DOMAIN
    domain = unnamed if named is None else str(named)
    messages, text = row.get("messages"), row.get("text")
    if messages is not None:
        if template is None:
            raise CompressError(f"{place}: has messages, but this model has no chat template; give rows with a text")
        text, answers = template.rendered(messages, place, spans=part.counts == "answers")
        return Document(text, domain, number, marked=True, answers=answers)
    if not isinstance(text, str):
        raise CompressError(
            f'{place}: expected {{"text": "…"}} or {{"messages": [{{"role": …, "content": …}}]}}, found '
            f"{json.dumps(row, ensure_ascii=False, default=str)[:60]!r}; correct or remove the row"
        )
    if part.counts == "answers":
        raise CompressError(f"{place}: has no messages, so no answer would count; write counts: all for {part.source}")
    return Document(text, domain, number)


def _rows(part: Part, root: Path) -> Rows:
    path = root / part.source
    readers: dict[str, Callable[[Path], Rows]] = dict(zip(FILES, (_jsonl, _txt, _parquet), strict=True))
    if path.suffix not in FILES:
        return _data_set(part, root)
    if not path.is_file():
        raise CompressError(f"{path}: not found; data sources are relative to the repository's root")
    return readers[path.suffix](path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf8")
    except UnicodeDecodeError as error:
        raise CompressError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _jsonl(path: Path) -> Rows:
    # Lines end at newlines only: JSON may hold the other separators that str.splitlines knows inside a text.
    for number, line in enumerate(_read_text(path).removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise CompressError(f"{path}:{number}: expected a JSON object, found {line[:60]!r}; correct the line")
        yield f"{path}:{number}", row


def _txt(path: Path) -> Rows:
    yield str(path), {"text": _read_text(path)}


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import, and few sources need it

    try:
        rows = pq.read_table(path).to_pylist()
    except Exception as error:
        raise CompressError(f"{path}: damaged or no parquet file ({first_line(error)}); fetch it again") from None
    yield from _numbered(rows, str(path))


def _data_set(part: Part, root: Path) -> Rows:
    import datasets  # noqa: PLC0415 - slow to import, and the demo's sources are local

    folder = root / part.source
    place = str(folder) if folder.is_dir() else part.source
    try:
        rows = datasets.load_dataset(place, part.name, split=part.split)
    except Exception as error:
        raise CompressError(
            f"{part.source}: no .jsonl, .txt or .parquet file, and as a data set it does not load "
            f"({first_line(error)}); correct the source, or connect"
        ) from None
    yield from _numbered(rows, part.source)


def _numbered(rows: Iterable[Row], source: str) -> Rows:
    yield from ((f"{source}: row {number}", row) for number, row in enumerate(rows))
