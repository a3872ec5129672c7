"""What a stage has won back of what a cut cost, and what its quantization costs beside the base's: paired, by window.

Every value has the middle 95 % of a bootstrap over windows beside it, all stages by the same draws, so that what makes
a window hard for all of them cancels.
"""

from collections.abc import Callable, Mapping

import numpy as np

from compress.evaluate.compare import WindowScores

DRAWS = 10_000


def interval(name: str, statistic: Callable[..., np.ndarray], *by_window: np.ndarray) -> Mapping[str, float]:
    """A statistic of means over windows, with its interval, under three keys."""
    draws = np.random.default_rng(0).integers(0, len(by_window[0]), (DRAWS, len(by_window[0])))
    low, high = np.percentile(statistic(*(x[draws].mean(1) for x in by_window)), [2.5, 97.5])
    value = statistic(*(x.mean() for x in by_window))
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def recovered(before: WindowScores, after: WindowScores) -> Mapping[str, float]:
    """The share of the perplexity that pruning cost, and that of its KL."""

    def of_perplexity(base: np.ndarray, pruned: np.ndarray, now: np.ndarray) -> np.ndarray:
        base, pruned, now = map(np.exp, (base, pruned, now))
        return (pruned - now) / (pruned - base)

    def of_kl(pruned: np.ndarray, now: np.ndarray) -> np.ndarray:
        return 1 - now / pruned

    nll = _numbers(before.base_nll_nats, before.nll_nats, after.nll_nats)
    kl = _numbers(before.kl_nats, after.kl_nats)
    return {**interval("recovered", of_perplexity, *nll), **interval("recovered_kl", of_kl, *kl)}


def quantization_extra(student: WindowScores, student_w4: WindowScores, base_w4: WindowScores) -> Mapping[str, float]:
    """Nats a token that quantizing the student costs more than quantizing the base did: of the text's likelihood, and
    of the divergence from the base. Below zero it costs less."""

    def more(now: np.ndarray, before: np.ndarray, base_now: np.ndarray, base: np.ndarray) -> np.ndarray:
        return (now - before) - (base_now - base)

    nll = _numbers(student_w4.nll_nats, student.nll_nats, base_w4.nll_nats, base_w4.base_nll_nats)
    kl = _numbers(student_w4.kl_nats, student.kl_nats, base_w4.kl_nats)
    zero = np.zeros_like(kl[0])  # the base's from itself
    return {**interval("extra_nll_nats", more, *nll), **interval("extra_kl_nats", more, *kl, zero)}


def _numbers(*values) -> list[np.ndarray]:
    return [x.cpu().double().numpy() for x in values]
