"""How much of an evaluation text was seen in calibration or training: runs of tokens that both hold.

A model that was fitted to the text it is measured on looks better than it is. A run of 13 tokens is long enough that
two texts rarely share it by chance, and short enough that a changed sentence does not hide a copied page. Marks between
documents and messages are no text: conversations that begin alike have these in common before anybody has spoken.
"""

# h (windows, runs) a number for each run of `size` tokens: Σ tokens · odd powers, modulo 2⁶⁴

from dataclasses import dataclass

import numpy as np

from compress.corpus.windows import Windows

RUN = 13
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token is lost modulo 2⁶⁴


@dataclass(frozen=True)
class Overlap:
    """Of the evaluation windows, the share that holds a run of the seen text, in all and by domain; and of the tokens
    the share that lies in such runs."""

    share: float
    tokens_share: float
    by_domain: dict[str, float]
    windows: list[int]


def overlap(seen: Windows, evaluation: Windows, marks: frozenset[int] = frozenset(), size: int = RUN) -> Overlap:
    """Which evaluation windows hold a run of `size` tokens that `seen` holds.

    A run has none of the `marks` in it, and of evaluation windows in which not all counts, only what counts.
    """
    known = np.unique(_runs(seen, marks, size)[0])
    numbers, counted = _runs(evaluation, marks, size)
    runs = np.isin(numbers, known) & counted
    hit, covered = runs.any(1), np.zeros(evaluation.tokens.shape, bool)
    for at in range(size):
        covered[:, at : at + runs.shape[1]] |= runs
    domains = np.array(evaluation.domains)
    by_domain = {str(name): float(hit[domains == name].mean()) for name in np.unique(domains)}
    return Overlap(float(hit.mean()), float(covered.mean()), by_domain, [int(n) for n in np.flatnonzero(hit)])


def _runs(windows: Windows, marks: frozenset[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """A number for each run of each window, and whether all its tokens are text that counts."""
    is_text = ~np.isin(windows.tokens, sorted(marks)) & (True if windows.mask is None else windows.mask)
    count, length = windows.tokens.shape
    numbers = np.zeros((count, max(length - size + 1, 0)), np.uint64)
    counted = np.ones(numbers.shape, bool)
    for at in range(size):
        here = slice(at, at + numbers.shape[1])
        numbers = numbers * _FACTOR + windows.tokens[:, here].astype(np.uint64) + np.uint64(1)
        counted &= is_text[:, here]
    return numbers, counted
