"""Losses between layers: a student's residual streams, queries, keys and values against those of its teacher's layers.

Each is held against the layer that is said, or against layers spread evenly. Streams of other widths are compared
through a learned projection, which is trained with the student and forgotten with the training; relations (how much
each position has to do with each one before it) have no width, so any two models can be compared.
"""

# s, t (tokens, width) a stream of student and teacher · w (tokens,) each position's share of the mean
# q (windows, heads, length, size) · relation: log-softmax of q qᵀ / √size over the positions before; arXiv 2012.15828

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compress.distill.losses import AttentionRelation, Hidden, LayerLoss
from compress.distill.stream import PROJECTIONS, Seen
from compress.errors import CompressError

Pair = tuple[int, int]  # the student's layer, the teacher's


@dataclass(frozen=True)
class Depth:
    """Of a model: how many layers, and how wide its residual stream is."""

    layers: int
    width: int


def pairs(loss: LayerLoss, student: int, teacher: int) -> list[Pair]:
    """Layers by number from the start; refuses those that are not there."""
    if loss.pairs == "even":
        return [(n, round((n + 1) * teacher / student) - 1) for n in range(student)]
    assert loss.pairs != "inherited"
    for ours, theirs in loss.pairs:
        if not (-student <= ours < student and -teacher <= theirs < teacher):
            raise CompressError(
                f"loss.{loss.kind}.pairs: [{ours}, {theirs}] of {student} and {teacher} layers; "
                f"use 0 to {student - 1} and 0 to {teacher - 1}, or -1 for the last"
            )
    return [(ours % student, theirs % teacher) for ours, theirs in loss.pairs]


class LayerLosses(nn.Module):
    """The layer losses of a mix with what they learn."""

    def __init__(self, losses: Sequence[LayerLoss], student: Depth, teacher: Depth, compiled: bool = False) -> None:
        """Pairs are numbers or even by now: who came from where is known to those who have the models."""
        super().__init__()
        self._hidden = torch.compile(hidden) if compiled else hidden
        self.terms = [(loss, pairs(loss, student.layers, teacher.layers)) for loss in losses]
        self.ours = _asked(self.terms, 0)
        self.theirs = _asked(self.terms, 1)
        widths = (student.width, teacher.width)
        count = (
            sum(len(found) for loss, found in self.terms if isinstance(loss, Hidden)) if widths[0] != widths[1] else 0
        )
        self.projections = nn.ModuleList(nn.Linear(*widths, bias=False) for _ in range(count))

    def forward(self, ours: Seen, theirs: Seen, w: Float[Tensor, "windows length"]) -> Float[Tensor, ""]:
        """The weighted sum over losses of the mean over their pairs."""
        projections = iter(self.projections)
        total = torch.zeros((), device=w.device)
        for loss, found in self.terms:
            for s, t in found:
                if isinstance(loss, Hidden):
                    stream = ours.residuals[s]
                    stream = next(projections)(stream) if len(self.projections) else stream
                    value = self._hidden(stream, theirs.residuals[t], w)
                else:
                    value = relations(_heads(ours, s, loss), _heads(theirs, t, loss), w)
                total = total + loss.weight / len(found) * value
        return total


def hidden(s: Tensor, t: Tensor, w: Float[Tensor, "windows length"]) -> Float[Tensor, ""]:
    """Σ w ‖s − t‖² / ‖t‖²: relative, so that no stream's size decides how much it counts; in float32."""
    s, t = s.float(), t.float()
    return (w * (s - t).square().sum(-1) / t.square().sum(-1).clamp_min(1e-12)).sum()


def relations(ours: Sequence[Tensor], theirs: Sequence[Tensor], w: Float[Tensor, "windows length"]) -> Tensor:
    """Σ w KL(teacher's relation ‖ student's), mean over heads and over queries, keys and values.

    A window at a time, computed again in the backward pass: of a batch's windows × heads × length² only one window's
    part exists.
    """
    parts = [
        checkpoint(_relation, s[n], t[n], w[n], use_reentrant=False)
        for s, t in zip(ours, theirs, strict=True)
        for n in range(len(w))
    ]
    return torch.stack(parts).sum() / len(ours)


def _relation(
    s: Float[Tensor, "heads length a"], t: Float[Tensor, "heads length b"], w: Float[Tensor, " length"]
) -> Float[Tensor, ""]:
    ls, lt = _related(s), _related(t)
    before = lt.isfinite()
    v = torch.where(before, lt.exp() * (lt.masked_fill(~before, 0) - ls.masked_fill(~before, 0)), 0).sum(-1)
    return (v.mean(0) * w).sum()


def _related(q: Tensor) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        products = q.float() @ q.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    behind = torch.ones(products.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return products.masked_fill(behind, float("-inf")).log_softmax(-1)


def _heads(seen: Seen, layer: int, loss: AttentionRelation) -> list[Tensor]:
    """Queries, keys and values of a layer, divided anew into so many heads."""
    found = [seen.projections[layer, name] for name in PROJECTIONS]
    for name, x in zip(PROJECTIONS, found, strict=True):
        if x.shape[-1] % loss.relation_heads:
            raise CompressError(
                f"loss.attention_relation.relation_heads: {loss.relation_heads} do not divide the {x.shape[-1]} "
                f"channels of {name} in layer {layer}; use a divisor"
            )
    return [x.unflatten(-1, (loss.relation_heads, -1)).transpose(1, 2) for x in found]


def _asked(terms: Sequence[tuple[LayerLoss, list[Pair]]], side: int) -> tuple[frozenset[int], frozenset[int]]:
    """Layers of one side whose streams, and whose projections, are looked at."""
    streams = {pair[side] for loss, found in terms if isinstance(loss, Hidden) for pair in found}
    attention = {pair[side] for loss, found in terms if isinstance(loss, AttentionRelation) for pair in found}
    return frozenset(streams), frozenset(attention)
