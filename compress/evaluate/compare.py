"""What a variant lost against its base, measured on the same windows from the two stored artifacts.

Perplexity says how well the variant predicts the text; the mean divergence from the base and the share of tokens where
both would say the same say how much of the base is left, which is what compression is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from compress.distill.train import final_hidden
from compress.evaluate.kv_cache import cached_hidden
from compress.progress import Progress, silent

LOGITS_AT_ONCE = 2**24  # entries of one model's logits in memory


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


@torch.no_grad()
def compare_models(
    variant: PreTrainedModel,
    base: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    *,
    counted: Bool[Tensor, "windows length"] | None = None,
    batch: int = 8,
    progress: Progress = silent,
) -> WindowScores:
    """Scores of every window; logits are made for a slice of tokens at a time.

    `counted` says at which positions what is predicted counts; every window has one before its last.
    """
    return compare_caches(variant, base, tokens, (None,), counted=counted, batch=batch, progress=progress)[None]


@torch.no_grad()
def compare_caches(
    variant: PreTrainedModel,
    base: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    kv_bits: Sequence[int | None],
    *,
    counted: Bool[Tensor, "windows length"] | None = None,
    batch: int = 8,
    progress: Progress = silent,
) -> dict[int | None, WindowScores]:
    """Scores with the variant's KV cache in each of these bits; None leaves it alone, as the base's is."""
    counts = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted
    weights = None if counted is None else counted.float().sum(1)
    rows: dict[int | None, list[tuple[Tensor, ...]]] = {bits: [] for bits in kv_bits}
    for x, c in zip(progress(tokens.split(batch), "batch"), counts.split(batch), strict=True):
        reference = final_hidden(base, x)
        for bits, scored in rows.items():
            hidden = final_hidden(variant, x) if bits is None else cached_hidden(variant, x, bits)
            scored.append(_score(hidden, variant.lm_head.weight, reference, base.lm_head.weight, x, c))
    return {bits: _joined(scored, weights) for bits, scored in rows.items()}


def _joined(scored: list[tuple[Tensor, ...]], weights: Tensor | None) -> WindowScores:
    nll, base_nll, kl, top1 = (torch.cat(column) for column in zip(*scored, strict=True))
    return WindowScores(nll, base_nll, kl, top1, weights)


def _score(
    hv: Tensor, Wv: Tensor, hb: Tensor, Wb: Tensor, tokens: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    windows, length = tokens.shape
    slices = range(0, length, max(1, LOGITS_AT_ONCE // (windows * Wv.shape[0])))
    parts = [_score_slice(hv, Wv, hb, Wb, tokens, counts, slice(s, s + slices.step)) for s in slices]
    nll, base_nll, kl, top1 = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
    predicted, every = counts[:, :-1].sum(1), counts.sum(1)
    return nll / predicted, base_nll / predicted, kl / every, top1 / every


def _score_slice(
    hv: Tensor, Wv: Tensor, hb: Tensor, Wb: Tensor, tokens: Tensor, counts: Tensor, at: slice
) -> tuple[Tensor, ...]:
    """Sums over those of some positions of each window that count."""
    variant = (hv[:, at] @ Wv.t()).float().log_softmax(-1)
    base = (hb[:, at] @ Wb.t()).float().log_softmax(-1)
    here = counts[:, at].float()
    kl = ((base.exp() * (base - variant)).sum(-1) * here).sum(1)
    same = ((variant.argmax(-1) == base.argmax(-1)).float() * here).sum(1)
    target = tokens[:, at.start + 1 : at.stop + 1, None]
    followed = here[:, : target.shape[1]]
    nll, base_nll = (-(x[:, : target.shape[1]].gather(2, target)[..., 0] * followed).sum(1) for x in (variant, base))
    return nll, base_nll, kl, same
