"""The Kullback-Leibler divergence of a student from its teacher, from hidden states, a slice of vocabulary at a time.

Logits of all tokens against InternLM2's 92,544 entries do not fit: 4 × 2048 tokens in float32 take 2.8 GiB, and the
gradient as much again. Both heads are applied to one slice of the vocabulary, running sums keep what the softmax
needs, and the backward pass makes each slice again instead of remembering it.
"""

# hs, ht (tokens, hidden) student's and teacher's hidden states · Ws, Wt (vocab, hidden) their heads
# zs, zt (tokens, slice) logits · KL(t‖s) = Σ pt (zt − zs) − lse(zt) + lse(zs)

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE = 8192  # entries of the vocabulary at a time


class _RunningSoftmax:
    """Log-sum-exp over slices, and the softmax's mean of a second quantity beside it, both exact."""

    def __init__(self, like: Tensor) -> None:
        self.top = like.new_full((like.shape[0],), float("-inf"), dtype=torch.float32)
        self.total = torch.zeros_like(self.top)
        self.weighted = torch.zeros_like(self.top)

    def add(self, z: Tensor, values: Tensor | None = None) -> None:
        top = torch.maximum(self.top, z.amax(1))
        kept, weights = (self.top - top).exp(), (z - top[:, None]).exp()
        self.total = self.total * kept + weights.sum(1)
        if values is not None:
            self.weighted = self.weighted * kept + (weights * values).sum(1)
        self.top = top

    @property
    def lse(self) -> Tensor:
        return self.top + self.total.log()

    @property
    def mean(self) -> Tensor:
        return self.weighted / self.total


def _slices(size: int) -> Iterator[slice]:
    return (slice(start, min(start + SLICE, size)) for start in range(0, size, SLICE))


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hs: Tensor, Ws: Tensor, ht: Tensor, Wt: Tensor) -> Tensor:
        student, teacher = _RunningSoftmax(hs), _RunningSoftmax(ht)
        for part in _slices(Ws.shape[0]):
            zs, zt = _logits(hs, Ws[part]), _logits(ht, Wt[part])
            student.add(zs)
            teacher.add(zt, zt - zs)
        ctx.save_for_backward(hs, Ws, ht, Wt, student.lse, teacher.lse)
        return teacher.mean - teacher.lse + student.lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hs, Ws, ht, Wt, lse_s, lse_t = ctx.saved_tensors
        grad_h, grad_W = torch.zeros_like(hs, dtype=torch.float32), torch.empty_like(Ws)
        for part in _slices(Ws.shape[0]):
            ps = (_logits(hs, Ws[part]) - lse_s[:, None]).exp_()
            ps -= (_logits(ht, Wt[part]) - lse_t[:, None]).exp_()
            error = (ps * gradient[:, None]).to(hs.dtype)
            grad_h += error @ Ws[part]
            grad_W[part] = error.t() @ hs
        return grad_h.to(hs.dtype), grad_W, None, None


def _logits(h: Tensor, W: Tensor) -> Float[Tensor, "tokens slice"]:
    return (h @ W.t()).float()


def divergence(
    hs: Float[Tensor, "tokens student_hidden"],
    Ws: Float[Tensor, "vocab student_hidden"],
    ht: Float[Tensor, "tokens teacher_hidden"],
    Wt: Float[Tensor, "vocab teacher_hidden"],
) -> Float[Tensor, " tokens"]:
    """KL(teacher ‖ student) of each token in nats; gradients reach the student's hidden states and head."""
    if torch.is_autocast_enabled(hs.device.type):  # said here, because autocast does not reach a backward pass
        hs, ht = (h.to(torch.get_autocast_dtype(hs.device.type)) for h in (hs, ht))
    result: Tensor = _Divergence.apply(hs, Ws.to(hs.dtype), ht, Wt.to(ht.dtype))  # type: ignore[no-untyped-call]
    return result
