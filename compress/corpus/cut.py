"""Documents into windows.

Each document is encoded by itself, with the marks that the model's own tokenizer adds (its BOS, where it has one), so
that a document begins the way the model saw documents begin; a conversation has its marks from the chat template. The
documents of a domain are then laid end to end and cut into windows without overlap; which of them are taken is a draw
by seed. No window mixes domains, or parts of a mix.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from tokenizers import Encoding, Tokenizer

from compress.corpus.documents import Document
from compress.corpus.recipe import CorpusRecipe
from compress.corpus.windows import Windows
from compress.errors import CompressError

Numbered = Mapping[int, Document]


@dataclass(frozen=True)
class _Window:
    """Tokens with the document that each is from and whether it counts."""

    tokens: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    domain: str


def make_windows(documents: list[Document], tokenizer: Tokenizer, recipe: CorpusRecipe) -> Windows:
    """The windows of a recipe, refused when a source holds fewer than its share."""
    shares = divided(recipe.windows, [part.weight for part in recipe.parts])
    chosen = [
        window
        for number, share in enumerate(shares)
        for window in _drawn(
            {n: d for n, d in enumerate(documents) if d.part == number}, tokenizer, recipe, number, share
        )
    ]
    tokens, owners, mask = (np.stack([getattr(w, name) for w in chosen]) for name in ("tokens", "documents", "counts"))
    return Windows(tokens, [window.domain for window in chosen], owners, None if mask.all() else mask)


def divided(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole numbers by weight: none is more than one away from its exact share, and equal inputs divide
    equally (the largest remainders are rounded up, the earlier first among equals)."""
    exact = [Fraction(weight) / sum(map(Fraction, weights)) * total for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: (whole[n] - exact[n], n))
    for n in by_remainder[: total - sum(whole)]:
        whole[n] += 1
    return whole


def _drawn(documents: Numbered, tokenizer: Tokenizer, recipe: CorpusRecipe, number: int, share: int) -> list[_Window]:
    part = recipe.parts[number]
    if not share:
        weights = f"of {sum(p.weight for p in recipe.parts):g}, {recipe.windows} windows in all"
        raise CompressError(
            f"{part.source}: no window for its weight {part.weight:g} {weights}; raise it or leave it out"
        )
    every = list(_all_windows(documents, tokenizer, recipe.length))
    if len(every) < share:
        mixed = f" of the mix's {recipe.windows}" if recipe.is_mix else ""
        answered = " with an answer" if part.counts == "answers" else ""
        raise CompressError(
            f"{part.source}: holds {len(every)} windows of {recipe.length} tokens{answered}, {share}{mixed} asked for; "
            "give a longer text, fewer windows or a shorter length"
        )
    chosen = random.Random(recipe.seed).sample(range(len(every)), share)  # noqa: S311 - not a secret
    return [every[n] for n in sorted(chosen)]


def _all_windows(documents: Numbered, tokenizer: Tokenizer, length: int) -> Iterator[_Window]:
    """Every window in which something counts that the window itself predicts."""
    for domain in sorted({document.domain for document in documents.values()}):
        tokens, owners, counts = _encoded({n: d for n, d in documents.items() if d.domain == domain}, tokenizer)
        for start in range(0, len(tokens) - length + 1, length):
            at = slice(start, start + length)
            if counts[at][1:].any():
                yield _Window(tokens[at], owners[at], counts[at], domain)


def _encoded(documents: Numbered, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids of all documents end to end, which document each is from, and whether it counts."""
    encodings: dict[int, Encoding] = {}
    for marked in (False, True):
        chosen = {n: document.text for n, document in documents.items() if document.marked == marked}
        encoded = tokenizer.encode_batch(list(chosen.values()), add_special_tokens=not marked)
        encodings |= zip(chosen, encoded, strict=True)
    ids = [np.array(encodings[n].ids, np.int32) for n in documents]
    owners = [np.full(len(encodings[n].ids), n, np.int32) for n in documents]
    counts = [_counts(document, encodings[n]) for n, document in documents.items()]
    return np.concatenate(ids), np.concatenate(owners), np.concatenate(counts)


def _counts(document: Document, encoding: Encoding) -> np.ndarray:
    if document.answers is None:
        return np.ones(len(encoding.ids), bool)
    starts = np.array([start for start, _ in encoding.offsets], np.int64)
    inside = [(starts >= begin) & (starts < end) for begin, end in document.answers]
    return np.logical_or.reduce(inside, initial=False, axis=0) if inside else np.zeros(len(starts), bool)
