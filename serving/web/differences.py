"""Two answers to one prompt, with what one has and the other has not marked in both."""

import html
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

# A word with the space before it, a CJK character, or any other character: close to what a tokenizer cuts.
TOKEN = re.compile(
    r"\s*[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\s*\w+?(?=[\u3040-\u30ff\u3400-\u9fff])|\s*\w+|\s*[^\w\s]|\s+"
)


def tokens(text: str) -> list[str]:
    """The text in pieces that joined give it back."""
    return TOKEN.findall(text)


def marked(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML; what the other one does not have at that place is inside <mark>."""
    a, b = tokens(left), tokens(right)
    changes = SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes()
    return (
        "".join(_pieces(a, [(kind != "equal", i, j) for kind, i, j, _, _ in changes])),
        "".join(_pieces(b, [(kind != "equal", i, j) for kind, _, _, i, j in changes])),
    )


def share_equal(left: str, right: str) -> float:
    """The share of both texts' tokens that they have in common, in order; 1 for equal texts."""
    return SequenceMatcher(a=tokens(left), b=tokens(right), autojunk=False).ratio()


def _pieces(words: Sequence[str], spans: Sequence[tuple[bool, int, int]]) -> Iterator[str]:
    for differs, start, end in spans:
        text = html.escape("".join(words[start:end]))
        if text:
            yield f"<mark>{text}</mark>" if differs else text
