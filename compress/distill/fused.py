"""The loss over the whole vocabulary from hidden states, some tokens at a time, its gradient made on the way.

Logits of all tokens against InternLM2's 92,544 entries do not fit: 4 × 2048 tokens in float32 take 2.8 GiB, for
student and teacher each, and the gradient as much again. Here the logits of a chunk of tokens are made once, the loss
and its gradient to these logits follow in closed form, and two products take the gradient on to the hidden states
and the head. The backward pass only scales what lies ready: no logits are made a second time.

Beside what is returned (hidden states' gradient, tokens × hidden; the head's, vocab × hidden, in float32) at most
`LIVE` tensors of chunk × vocab in float32 exist at a time, each of at most `CHUNK_BYTES` of its device; heads that are
multiplied in bf16 lie there once more in bf16.
"""

# hs, ht (tokens, hidden) student's and teacher's hidden states · Ws, Wt (vocab, hidden) their heads
# zs, zt (chunk, vocab) logits · g (chunk, vocab) ∂loss/∂zs

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress.distill.token_losses import Chunk, Term, Top, forward_kl

CHUNK_BYTES = {"cuda": 2**29, "cpu": 2**25}  # float32 logits of a chunk
LIVE = 11


@dataclass(frozen=True)
class FromHidden:
    """A teacher's final hidden states and its head: all its logits."""

    ht: Float[Tensor, "tokens hidden"]
    Wt: Float[Tensor, "vocab hidden"]


@dataclass(frozen=True)
class FromTop:
    """A teacher's likeliest entries: log-probabilities and ids."""

    lt: Float[Tensor, "tokens k"]
    ids: Integer[Tensor, "tokens k"]


Target = FromHidden | FromTop
Mixed = Callable[[Tensor, Tensor | None, Top | None, Tensor | None, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mix:
    """Terms of a loss with their weights; `compiled`, a chunk's arithmetic is a few kernels."""

    terms: Sequence[tuple[float, Term]]
    compiled: bool = False

    def function(self) -> Mixed:
        """From a chunk's logits, and a weight for each term and token, to the sum and its gradient."""
        terms = tuple(self.terms)

        def mixed(
            zs: Tensor, zt: Tensor | None, top: Top | None, labels: Tensor | None, w: Tensor
        ) -> tuple[Tensor, Tensor]:
            chunk = Chunk(zs.float(), None if zt is None else zt.float(), top, labels)
            total, gradient = zs.new_zeros((), dtype=torch.float32), None
            for (weight, term), each in zip(terms, w, strict=True):
                v, g = term(chunk)
                total = total + weight * (v * each).sum()
                g = g * (weight * each)[:, None]
                gradient = g if gradient is None else gradient + g
            assert gradient is not None
            return total, gradient.to(zs.dtype)

        return torch.compile(mixed) if self.compiled else mixed


def fused_loss(
    hs: Float[Tensor, "tokens student_hidden"],
    Ws: Float[Tensor, "vocab student_hidden"],
    target: Target | None,
    labels: Integer[Tensor, " tokens"] | None,
    w: Float[Tensor, "terms tokens"],
    mixed: Mixed,
) -> Float[Tensor, ""]:
    """Σ over terms and tokens of w · loss in nats; gradients reach the student's hidden states and head, once."""
    if not torch.is_grad_enabled():  # which `needs_input_grad` does not ask
        hs, Ws = hs.detach(), Ws.detach()
    result: Tensor = _Fused.apply(hs, Ws, target, labels, w, mixed)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def divergence(
    hs: Float[Tensor, "tokens student_hidden"],
    Ws: Float[Tensor, "vocab student_hidden"],
    ht: Float[Tensor, "tokens teacher_hidden"],
    Wt: Float[Tensor, "vocab teacher_hidden"],
) -> Float[Tensor, " tokens"]:
    """KL(teacher ‖ student) of each token in nats."""
    chunks = _chunks(hs, Ws)
    logits = ((hs[part] @ Ws.t(), ht[part] @ Wt.t()) for part in chunks)
    return torch.cat([forward_kl(Chunk(zs.float(), zt.float()), 1.0)[0] for zs, zt in logits])


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hs: Tensor, Ws: Tensor, target: Target | None, labels: Tensor | None, w: Tensor, mixed: Mixed
    ) -> Tensor:
        kind = hs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hs.dtype
        with torch.autocast(kind, enabled=False):  # the products' type is said here
            pass_ = _Pass(hs, Ws, ctx.needs_input_grad[:2], dtype)
            loss = pass_.run(target, labels, w, mixed)
        ctx.grads = [pass_.grad_h, pass_.grad_W]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_h, grad_W = (None if grad is None else grad.mul_(gradient) for grad in ctx.grads)
        ctx.grads = None
        return grad_h, grad_W, None, None, None, None


class _Pass:
    """One walk over the tokens: the loss, and the gradients that are asked for."""

    def __init__(self, hs: Tensor, Ws: Tensor, needed: tuple[bool, bool], dtype: torch.dtype) -> None:
        self.hs, self.Ws, self.dtype = hs.detach(), Ws.detach(), dtype
        self.grad_h = torch.empty_like(self.hs) if needed[0] else None
        self.grad_W = torch.zeros_like(self.Ws, dtype=torch.float32) if needed[1] else None

    def run(self, target: Target | None, labels: Tensor | None, w: Tensor, mixed: Mixed) -> Tensor:
        Ws = self.Ws.to(self.dtype)
        Wt = target.Wt.to(self.dtype) if isinstance(target, FromHidden) else None
        total = self.hs.new_zeros((), dtype=torch.float32)
        for part in _chunks(self.hs, Ws):
            h = self.hs[part].to(self.dtype)
            zt = target.ht[part].to(self.dtype) @ Wt.t() if isinstance(target, FromHidden) and Wt is not None else None
            top = (target.lt[part], target.ids[part]) if isinstance(target, FromTop) else None
            value, g = mixed(h @ Ws.t(), zt, top, None if labels is None else labels[part], w[:, part])
            total += value
            self._add(part, h, Ws, g)
        return total

    def _add(self, part: slice, h: Tensor, Ws: Tensor, g: Tensor) -> None:
        if self.grad_h is not None:
            self.grad_h[part] = g @ Ws
        if self.grad_W is not None and self.grad_W.dtype == self.dtype:
            self.grad_W.addmm_(g.t(), h)
        elif self.grad_W is not None:
            self.grad_W += g.t() @ h  # each chunk's product is rounded to bf16, their sum is not


def _chunks(hs: Tensor, Ws: Tensor) -> Iterator[slice]:
    """Slices of the tokens, a power of two long, so that batches of usual sizes divide into equal ones."""
    most = CHUNK_BYTES["cpu" if hs.device.type == "cpu" else "cuda"] // (4 * Ws.shape[0])
    size = 1 << max(most, 1).bit_length() - 1
    return (slice(start, min(start + size, hs.shape[0])) for start in range(0, hs.shape[0], size))
