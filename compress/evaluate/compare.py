"""What a variant lost against its base, measured on the same windows from the two stored artifacts.

Perplexity says how well the variant predicts the text; the mean divergence from the base and the share of tokens where
both would say the same say how much of the base is left, which is what compression is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from compress.distill.train import final_hidden
from compress.evaluate.kv_cache import quantized_cache
from compress.progress import Progress, silent

LOGITS_AT_ONCE = 2**24  # entries of one model's logits in memory


@dataclass(frozen=True)
class WindowScores:
    """Per window: the variant's and the base's mean NLL of the next token, mean KL(base ‖ variant), top-1 agreement.

    The last token of a window predicts nothing in it: it counts for KL and agreement, not for the likelihood.
    """

    nll_nats: Float[Tensor, " windows"]
    base_nll_nats: Float[Tensor, " windows"]
    kl_nats: Float[Tensor, " windows"]
    top1: Float[Tensor, " windows"]

    def means(self, chosen: Tensor | None = None) -> Mapping[str, float]:
        """Metrics over all windows, or over those where `chosen` is true."""
        every = torch.ones_like(self.top1, dtype=torch.bool) if chosen is None else chosen
        nll, base = (x[every].mean().exp().item() for x in (self.nll_nats, self.base_nll_nats))
        return {
            "perplexity": nll,
            "perplexity_delta": nll - base,
            "kl_nats": self.kl_nats[every].mean().item(),
            "top1_agreement": self.top1[every].mean().item(),
        }


@torch.no_grad()
def compare_models(
    variant: PreTrainedModel,
    base: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    *,
    batch: int = 8,
    progress: Progress = silent,
) -> WindowScores:
    """Scores of every window; logits are made for a slice of tokens at a time."""
    return compare_caches(variant, base, tokens, (None,), batch=batch, progress=progress)[None]


@torch.no_grad()
def compare_caches(
    variant: PreTrainedModel,
    base: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    kv_bits: Sequence[int | None],
    *,
    batch: int = 8,
    progress: Progress = silent,
) -> dict[int | None, WindowScores]:
    """Scores with the variant's KV cache in each of these bits; None leaves it alone, as the base's is."""
    rows: dict[int | None, list[tuple[Tensor, ...]]] = {bits: [] for bits in kv_bits}
    for x in progress(tokens.split(batch), "batch"):
        reference = final_hidden(base, x)
        for bits, scored in rows.items():
            hidden = final_hidden(variant, x) if bits is None else _cached_hidden(variant, x, bits)
            scored.append(_score(hidden, variant.lm_head.weight, reference, base.lm_head.weight, x))
    return {
        bits: WindowScores(*(torch.cat(column) for column in zip(*scored, strict=True)))
        for bits, scored in rows.items()
    }


def _cached_hidden(model: PreTrainedModel, tokens: Tensor, bits: int) -> Tensor:
    """What the output head reads when attention reads a cache of so many bits."""
    hidden: Tensor = model.model(tokens, use_cache=True, past_key_values=quantized_cache(bits)).last_hidden_state
    return hidden


def _score(hv: Tensor, Wv: Tensor, hb: Tensor, Wb: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    windows, length = tokens.shape
    slices = range(0, length, max(1, LOGITS_AT_ONCE // (windows * Wv.shape[0])))
    parts = [_score_slice(hv, Wv, hb, Wb, tokens, slice(s, s + slices.step)) for s in slices]
    nll, base_nll, kl, top1 = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
    return nll / (length - 1), base_nll / (length - 1), kl / length, top1 / length


def _score_slice(hv: Tensor, Wv: Tensor, hb: Tensor, Wb: Tensor, tokens: Tensor, at: slice) -> tuple[Tensor, ...]:
    """Sums over some positions of each window."""
    variant = (hv[:, at] @ Wv.t()).float().log_softmax(-1)
    base = (hb[:, at] @ Wb.t()).float().log_softmax(-1)
    kl = (base.exp() * (base - variant)).sum(-1).sum(1)
    same = (variant.argmax(-1) == base.argmax(-1)).float().sum(1)
    target = tokens[:, at.start + 1 : at.stop + 1, None]
    nll, base_nll = (-x[:, : target.shape[1]].gather(2, target).sum((1, 2)) for x in (variant, base))
    return nll, base_nll, kl, same
