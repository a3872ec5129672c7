"""Two answers to one prompt, with what one has and the other has not marked in both.

What is compared are the tokens that a model's tokenizer cuts both texts into; without a tokenizer, words.
"""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from tokenizers import Encoding, Tokenizer

# A word with the space before it, a CJK character, or any other character.
WORD = re.compile(
    r"\s*[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\s*\w+?(?=[\u3040-\u30ff\u3400-\u9fff])|\s*\w+|\s*[^\w\s]|\s+"
)


@dataclass(frozen=True)
class Piece:
    """What is compared, and its text. Ids are compared where there are any: one token may be written in two ways,
    at the beginning of a text and behind another.
    """

    compared: tuple[int, ...] | str
    text: str = field(compare=False)


Cut = Callable[[str], list[Piece]]


def cut_words(text: str) -> list[Piece]:
    """The text in words that joined give it back."""
    return [Piece(word, word) for word in WORD.findall(text)]


def cut_by(tokenizer: Tokenizer) -> Cut:
    """Cuts a text into this tokenizer's tokens; those that are bytes of one character are one piece."""
    return lambda text: list(_cut(tokenizer.encode(text, add_special_tokens=False), text))


def _cut(read: Encoding, text: str) -> Iterator[Piece]:
    """Pieces that joined give the text back: what lies between two tokens goes with the second."""
    ids: tuple[int, ...] = ()
    start = end = 0
    for index, (first, last) in zip(read.ids, read.offsets, strict=True):
        if ids and first >= end:  # shares no character with the tokens before it
            yield Piece(ids, text[start:end])
            ids, start = (), end
        ids, end = (*ids, index), max(end, last)
    if ids:
        yield Piece(ids, text[start:end])
    if rest := text[end:]:
        yield Piece(rest, rest)


def marked(left: Sequence[Piece], right: Sequence[Piece]) -> tuple[str, str]:
    """Both texts as HTML; what the other one does not have at that place is inside <mark>."""
    changes = SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes()
    return (
        "".join(_shown(left, [(kind != "equal", i, j) for kind, i, j, _, _ in changes])),
        "".join(_shown(right, [(kind != "equal", i, j) for kind, _, _, i, j in changes])),
    )


def share_equal(left: Sequence[Piece], right: Sequence[Piece]) -> float:
    """The share of both texts' pieces that they have in common, in order; 1 for equal texts."""
    return SequenceMatcher(a=left, b=right, autojunk=False).ratio()


def _shown(pieces: Sequence[Piece], spans: Sequence[tuple[bool, int, int]]) -> Iterator[str]:
    for differs, start, end in spans:
        text = html.escape("".join(piece.text for piece in pieces[start:end]))
        if text:
            yield f"<mark>{text}</mark>" if differs else text
