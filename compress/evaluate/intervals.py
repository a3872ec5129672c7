"""How sure a measured number is: a bootstrap over documents, of one variant or of two on the same documents.

Documents are drawn again and again with replacement, as many as there are, and the metric is computed of each draw;
the middle 95 % of what comes out is the interval. Of two variants each draw takes the same documents, so what makes
a document hard for both cancels: a difference can be certain where both values are not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DRAWS = 2000
CHUNK = 100  # draws at a time: a draw holds a count for each document
LEVEL = 0.95

Sums = Mapping[str, np.ndarray]  # a column for each kind of sum, an entry for each document or each draw
Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def perplexity(s: Sums) -> np.ndarray:
    return np.exp(s["nll_nats"] / s["predicted"])


def base_perplexity(s: Sums) -> np.ndarray:
    return np.exp(s["base_nll_nats"] / s["predicted"])


def perplexity_delta(s: Sums) -> np.ndarray:
    return perplexity(s) - base_perplexity(s)


def kl_nats(s: Sums) -> np.ndarray:
    return s["kl_nats"] / s["tokens"]


def top1_agreement(s: Sums) -> np.ndarray:
    return s["top1"] / s["tokens"]


def top5_agreement(s: Sums) -> np.ndarray:
    return s["top5"] / s["tokens"]


METRICS: dict[str, Statistic] = {
    "perplexity": perplexity,
    "perplexity_delta": perplexity_delta,
    "kl_nats": kl_nats,
    "top1_agreement": top1_agreement,
    "top5_agreement": top5_agreement,
}


def bootstrap(statistic: Statistic, *measured: Sums, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The statistic of all documents with its interval; several `measured` must have their documents in one order."""
    count = len(next(iter(measured[0].values())))
    with np.errstate(invalid="ignore"):  # a draw of nothing but last tokens, which predict nothing, has no perplexity
        drawn = np.concatenate([statistic(*parts) for parts in _draws(measured, count, draws, seed)])
    whole = statistic(*({name: column.sum(keepdims=True) for name, column in sums.items()} for sums in measured))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(whole[0]), float(low), float(high))


def _draws(measured: tuple[Sums, ...], count: int, draws: int, seed: int) -> Iterator[list[Sums]]:
    """For each of `measured`, sums over the drawn documents, an entry a draw; all take the same documents."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, CHUNK):
        times: Float[np.ndarray, "chunk documents"] = generator.multinomial(
            count, np.full(count, 1 / count), size=min(CHUNK, draws - start)
        ).astype(np.float64)
        yield [{name: times @ column for name, column in sums.items()} for sums in measured]
