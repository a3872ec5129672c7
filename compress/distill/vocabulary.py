"""Whether two models mean the same by a token's number: without that, a divergence between them says nothing."""

import json
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compress.errors import CompressError, first_line

AROUND = ("normalizer", "pre_tokenizer", "post_processor")  # the decoder only makes text of tokens
LONGEST = 60  # characters of a value in a message
Facts = dict[str, object]


def require_same_tokenizer(student: Path, teacher: Path) -> None:
    """Refuses folders whose tokenizer.json give a number, or a text, to different tokens."""
    ours, theirs = student / "tokenizer.json", teacher / "tokenizer.json"
    texts = [path.read_text("utf8") for path in (ours, theirs)]
    if texts[0] == texts[1]:
        return
    for a, b in zip(*starmap(_facts, zip((ours, theirs), texts, strict=True)), strict=True):
        for place in a | b:
            if a.get(place) != b.get(place):
                raise CompressError(
                    f"{theirs}: {place} is {_short(b.get(place))}, and {_short(a.get(place))} in {ours}; "
                    "distil from a teacher of the student's own family"
                )


def _facts(path: Path, text: str) -> tuple[Facts, ...]:
    """What decides which numbers a text becomes, by name: tokens, the model, added tokens' flags, what is around."""
    try:
        # Through the library: of two spellings of merges and of what goes without saying it makes one.
        content: dict[str, Any] = json.loads(Tokenizer.from_str(text).to_str())
    except Exception as error:  # the library raises nothing narrower
        raise CompressError(f"{path}: no tokenizer ({first_line(error)}); make or fetch the model again") from None
    model, added = content["model"], content["added_tokens"]
    vocabulary = model.pop("vocab")
    scored = [] if isinstance(vocabulary, dict) else vocabulary
    named = vocabulary.items() if isinstance(vocabulary, dict) else ((token, n) for n, (token, _) in enumerate(scored))
    numbers = {n: token for token, n in named} | {token["id"]: token["content"] for token in added}
    return (
        {f"token {n}": numbers[n] for n in sorted(numbers)},
        {f"the score of token {n} ({token!r})": score for n, (token, score) in enumerate(scored)},
        dict(_leaves(model, "model")),
        {f"{flag} of token {t['id']} ({t['content']!r})": t[flag] for t in added for flag in sorted(t)},
        *(dict(_leaves(content[part], part)) for part in AROUND),
    )


def _leaves(value: Any, place: str) -> Iterator[tuple[str, object]]:
    """What is no list and no mapping, with its place in those around it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{place}.{key}")
    else:
        yield place, value


def _short(value: object) -> str:
    """A value in a message; some are tables of thousands of characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
