"""Each loss over the vocabulary on a few tokens' logits, in closed form: its value and its gradient to the logits.

An optimiser needs the gradient only, and softmax makes it a short formula of what the value needs anyway; so nothing
is remembered for a backward pass.
"""

# zs, zt (tokens, vocab) student's and teacher's logits · at temperature T ls, lt log- and ps, pt probabilities
# v (tokens,) values in nats · g (tokens, vocab) ∂v/∂zs · a softmax's Jacobian takes ∂v/∂ps to ps·(∂v/∂ps − Σ ps·∂v/∂ps)

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from compress.distill.losses import CrossEntropy, ForwardKl, JensenShannon, ReverseKl, TopKKl, VocabularyLoss
from compress.errors import CompressError

Values = Float[Tensor, " tokens"]
Logits = Float[Tensor, "tokens vocab"]
Top = tuple[Float[Tensor, "tokens k"], Integer[Tensor, "tokens k"]]


@dataclass(frozen=True)
class Chunk:
    """Some tokens: the student's logits, and beside them what there is of the teacher's and the text's."""

    zs: Tensor
    zt: Tensor | None = None
    top: Top | None = None  # the teacher's likeliest entries, log-probabilities and ids, where no logits are known
    labels: Tensor | None = None


Term = Callable[[Chunk], tuple[Tensor, Tensor]]


def term(loss: VocabularyLoss) -> Term:
    """The function of a loss, its settings bound."""
    match loss:
        case ForwardKl():
            return partial(forward_kl, T=loss.temperature)
        case ReverseKl():
            return partial(reverse_kl, T=loss.temperature)
        case JensenShannon():
            return partial(jensen_shannon, T=loss.temperature, share=loss.share)
        case TopKKl():
            return partial(top_k_kl, T=loss.temperature, k=loss.k)
        case CrossEntropy():
            return cross_entropy


def forward_kl(chunk: Chunk, T: float) -> tuple[Tensor, Tensor]:
    """v = T² Σ pt (lt − ls), g = T (ps − pt)."""
    ls, lt = _log_softmax(chunk.zs, T), _log_softmax(_known(chunk.zt), T)
    pt = lt.exp()
    return T * T * (pt * (lt - ls)).sum(1), T * (ls.exp() - pt)


def reverse_kl(chunk: Chunk, T: float) -> tuple[Tensor, Tensor]:
    """v = T² Σ ps (ls − lt), g = T ps (ls − lt − v/T²)."""
    ls, lt = _log_softmax(chunk.zs, T), _log_softmax(_known(chunk.zt), T)
    ps, ratio = ls.exp(), ls - lt
    v = (ps * ratio).sum(1)
    return T * T * v, T * ps * (ratio - v[:, None])


def jensen_shannon(chunk: Chunk, T: float, share: float) -> tuple[Tensor, Tensor]:
    """v = T² (β KL(pt‖m) + (1−β) KL(ps‖m)) with m = β pt + (1−β) ps; ∂v/∂ps = T² (1−β) log(ps/m)."""
    ls, lt = _log_softmax(chunk.zs, T), _log_softmax(_known(chunk.zt), T)
    lm = torch.logaddexp(lt + math.log(share), ls + math.log1p(-share))
    ps, toward = ls.exp(), (1 - share) * (ls - lm)
    ours = (ps * toward).sum(1)
    return T * T * (share * (lt.exp() * (lt - lm)).sum(1) + ours), T * ps * (toward - ours[:, None])


def top_k_kl(chunk: Chunk, T: float, k: int) -> tuple[Tensor, Tensor]:
    """v = T² Σ over k entries and the tail of pt (lt − ls); g = T (ps − pt) on the k, T ps (1 − pt/ps) of the tail."""
    ls = _log_softmax(chunk.zs, T)
    known = chunk.top if chunk.top is not None else _log_softmax(_known(chunk.zt), T).topk(k)
    lt, ids = known[0][:, :k], known[1][:, :k]  # of a cache, which may hold more, the likeliest come first
    chosen = ls.gather(1, ids)
    tail_s = ls.scatter(1, ids, float("-inf")).logsumexp(1)
    tail_t = torch.log((1 - lt.exp().sum(1)).clamp_min(torch.finfo(ls.dtype).tiny))
    v = (lt.exp() * (lt - chosen)).sum(1) + tail_t.exp() * (tail_t - tail_s)
    ps = ls.exp()
    g = (ps * (1 - (tail_t - tail_s).exp())[:, None]).scatter(1, ids, chosen.exp() - lt.exp())
    return T * T * v, T * g


def cross_entropy(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """v = −ls[label], g = ps − 1 at the label."""
    ls, labels = _log_softmax(chunk.zs, 1.0), _known(chunk.labels)[:, None]
    g = ls.exp().scatter_add(1, labels, torch.full_like(ls[:, :1], -1.0))
    return -ls.gather(1, labels).squeeze(1), g


def _log_softmax(z: Tensor, T: float) -> Tensor:
    return (z if T == 1 else z / T).log_softmax(-1)


def _known(part: Tensor | None) -> Tensor:
    if part is None:
        raise CompressError(
            "loss: needs all logits of the teacher, and its cache holds the top k; cache: hidden has all"
        )
    return part
