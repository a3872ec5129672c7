"""What a variant lost against its base, measured on the same windows from the two stored artifacts.

Perplexity says how well the variant predicts the text; the mean divergence from the base and the share of tokens where
both would say the same say how much of the base is left, which is what compression is about.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from compress.evaluate.tokens import LiveReference, score_tokens
from compress.progress import Progress, silent


@dataclass(frozen=True)
class WindowScores:
    """Per window: the variant's and the base's mean NLL of the next token, mean KL(base ‖ variant), top-1 agreement.

    The last token of a window predicts nothing in it: it counts for KL and agreement, not for the likelihood. Where not
    all positions count, `counted` has their number, by which windows are weighted.
    """

    nll_nats: Float[Tensor, " windows"]
    base_nll_nats: Float[Tensor, " windows"]
    kl_nats: Float[Tensor, " windows"]
    top1: Float[Tensor, " windows"]
    counted: Float[Tensor, " windows"] | None = None

    def means(self, chosen: Tensor | None = None) -> Mapping[str, float]:
        """Metrics over all windows, or over those where `chosen` is true."""
        every = torch.ones_like(self.top1, dtype=torch.bool) if chosen is None else chosen
        nll, base = (self._mean(x, every).exp().item() for x in (self.nll_nats, self.base_nll_nats))
        return {
            "perplexity": nll,
            "perplexity_delta": nll - base,
            "kl_nats": self._mean(self.kl_nats, every).item(),
            "top1_agreement": self._mean(self.top1, every).item(),
        }

    def _mean(self, score: Tensor, chosen: Tensor) -> Tensor:
        if self.counted is None:
            return score[chosen].mean()
        return (score * self.counted)[chosen].sum() / self.counted[chosen].sum()


def compare_models(
    variant: PreTrainedModel,
    base: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    *,
    counted: Bool[Tensor, "windows length"] | None = None,
    batch: int = 8,
    progress: Progress = silent,
) -> WindowScores:
    """Scores of every window, on the host.

    `counted` says at which positions what is predicted counts; every window has one before its last.
    """
    scores = score_tokens(variant, LiveReference(base), tokens, batch=batch, progress=progress)
    counts = torch.ones_like(scores.top1) if counted is None else counted.cpu().float()

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum(1) / where.sum(1)

    followed = counts * scores.predicts
    return WindowScores(
        nll_nats=mean(scores.nll_nats, followed),
        base_nll_nats=mean(scores.base_nll_nats, followed),
        kl_nats=mean(scores.kl_nats, counts),
        top1=mean(scores.top1, counts),
        counted=None if counted is None else counts.sum(1),
    )
