"""Whether two models mean the same by a token's number: without that, a divergence between them says nothing."""

import json
from pathlib import Path
from typing import Any

from compress.errors import CompressError


def require_same_tokenizer(student: Path, teacher: Path) -> None:
    """Refuses folders whose tokenizer.json give a number, or a text, to different tokens."""
    ours, theirs = student / "tokenizer.json", teacher / "tokenizer.json"
    texts = [path.read_bytes() for path in (ours, theirs)]
    if texts[0] == texts[1]:
        return
    first, second = (_tokens(path, text) for path, text in zip((ours, theirs), texts, strict=True))
    remedy = "distil from a teacher of the student's own family"
    for number in sorted(first.keys() | second.keys()):
        if first.get(number) != second.get(number):
            raise CompressError(
                f"{theirs}: token {number} is {second.get(number)!r}, and {first.get(number)!r} in {ours}; {remedy}"
            )
    a, b = (json.loads(text) for text in texts)
    for part in ("normalizer", "pre_tokenizer"):
        if a.get(part) != b.get(part):
            raise CompressError(f"{theirs}: its {part} is not that of {ours}, so texts become other tokens; {remedy}")
    if a["model"].get("merges") != b["model"].get("merges"):
        raise CompressError(f"{theirs}: its merges are not those of {ours}, so texts become other tokens; {remedy}")


def _tokens(path: Path, text: bytes) -> dict[int, str]:
    try:
        content: dict[str, Any] = json.loads(text)
        vocabulary = content["model"]["vocab"]
        pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((e[0], n) for n, e in enumerate(vocabulary))
        return {n: token for token, n in pairs} | {t["id"]: t["content"] for t in content.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError) as error:
        raise CompressError(f"{path}: no tokenizer ({error}); make or fetch the model again") from None
