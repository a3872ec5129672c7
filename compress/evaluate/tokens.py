"""What a variant lost against its base at every token, and the same added up document by document.

The unit is the document because tokens of one text err together: an interval from tokens as if each were drawn by
itself would be far too narrow. From a document's sums every metric follows, of all documents or of some.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from transformers import PreTrainedModel

from compress.distill.stream import final_hidden
from compress.evaluate.kv_cache import cached_hidden
from compress.progress import Progress, silent

LOGITS_AT_ONCE = 2**24  # entries of one model's logits in memory
TOP = 5


@runtime_checkable
class Reference(Protocol):
    """The base, as far as it is needed: what its head reads for some windows, and the head."""

    @property
    def head(self) -> Tensor: ...

    def hidden(self, start: int, tokens: Tensor) -> Tensor:
        """Final hidden states (windows, length, hidden) of `tokens`, which are the windows from number `start` on."""
        ...


@dataclass(frozen=True)
class LiveReference:
    """The base's hidden states computed when they are asked for."""

    model: PreTrainedModel

    @property
    def head(self) -> Tensor:
        weight: Tensor = self.model.lm_head.weight
        return weight

    def hidden(self, start: int, tokens: Tensor) -> Tensor:
        return final_hidden(self.model, tokens)


@dataclass(frozen=True)
class TokenScores:
    """Per token: NLL of the next one under the variant and the base, KL(base ‖ variant), whether both would say the
    same, and which share of the base's five likeliest tokens is among the variant's.

    The last token of a window predicts nothing in it: its NLL is 0 and `predicts` is false there.
    """

    nll_nats: Float[Tensor, "windows length"]
    base_nll_nats: Float[Tensor, "windows length"]
    kl_nats: Float[Tensor, "windows length"]
    top1: Float[Tensor, "windows length"]
    top5: Float[Tensor, "windows length"]

    @property
    def predicts(self) -> Bool[Tensor, "windows length"]:
        mask = torch.ones_like(self.top1, dtype=torch.bool)
        mask[:, -1] = False
        return mask


@dataclass(frozen=True)
class DocumentSums:
    """Sums over each document's tokens; what `intervals` draws from. `units` numbers the documents."""

    units: Integer[np.ndarray, " documents"]
    columns: Mapping[str, Float[np.ndarray, " documents"]]


@torch.no_grad()
def score_tokens(
    variant: PreTrainedModel,
    reference: Reference,
    tokens: Integer[Tensor, "windows length"],
    *,
    kv_bits: int | None = None,
    batch: int = 8,
    progress: Progress = silent,
) -> TokenScores:
    """Scores of every token on the host; logits are made for a slice of positions at a time.

    With `kv_bits` the variant's attention reads a KV cache in so many bits, as the engine's does.
    """
    batches = enumerate(progress(tokens.split(batch), "batch"))
    rows = [_score(variant, reference, number * batch, x, kv_bits) for number, x in batches]
    return TokenScores(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def _score(
    variant: PreTrainedModel, reference: Reference, start: int, tokens: Tensor, kv_bits: int | None
) -> tuple[Tensor, ...]:
    hv = final_hidden(variant, tokens) if kv_bits is None else cached_hidden(variant, tokens, kv_bits)
    hb = reference.hidden(start, tokens)
    Wv, Wb = variant.lm_head.weight, reference.head
    windows, length = tokens.shape
    step = max(1, LOGITS_AT_ONCE // (windows * Wv.shape[0]))
    parts = [_score_slice(hv, Wv, hb, Wb, tokens, slice(s, s + step)) for s in range(0, length, step)]
    return tuple(torch.cat(column, 1) for column in zip(*parts, strict=True))


def _score_slice(hv: Tensor, Wv: Tensor, hb: Tensor, Wb: Tensor, tokens: Tensor, at: slice) -> tuple[Tensor, ...]:
    variant = (hv[:, at] @ Wv.t()).float().log_softmax(-1)
    base = (hb[:, at] @ Wb.t()).float().log_softmax(-1)
    kl = (base.exp() * (base - variant)).sum(-1)
    ours, theirs = variant.topk(TOP).indices, base.topk(TOP).indices
    # topk leaves open which of two equal logits comes first; argmax is what greedy decoding takes.
    top1 = (variant.argmax(-1) == base.argmax(-1)).float()
    top5 = (ours[..., :, None] == theirs[..., None, :]).any(-1).float().mean(-1)
    target = tokens[:, at.start + 1 : at.stop + 1, None]
    nll, base_nll = (_gathered(x, target) for x in (variant, base))
    return nll, base_nll, kl, top1, top5


def _gathered(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """The NLL of each position's target; 0 at a last position, which has none."""
    nll = -log_probabilities[:, : target.shape[1]].gather(2, target)[..., 0]
    return torch.nn.functional.pad(nll, (0, log_probabilities.shape[1] - nll.shape[1]))


def by_document(
    scores: TokenScores,
    documents: Integer[np.ndarray, "windows length"] | None,
    where: Bool[np.ndarray, "windows length"] | None = None,
) -> DocumentSums:
    """Sums over each document, of the positions where `where` is true; a window is a unit where documents are None."""
    windows, length = scores.top1.shape
    owners = np.repeat(np.arange(windows)[:, None], length, 1) if documents is None else documents
    chosen = np.ones((windows, length), bool) if where is None else where
    units, places = np.unique(owners[chosen], return_inverse=True)
    values = {name: getattr(scores, name) for name in ("nll_nats", "base_nll_nats", "kl_nats", "top1", "top5")}
    values |= {"tokens": torch.ones_like(scores.top1), "predicted": scores.predicts.float()}
    sums = {k: np.bincount(places, v.double().numpy()[chosen], minlength=len(units)) for k, v in values.items()}
    return DocumentSums(units, sums)
