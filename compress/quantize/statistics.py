"""What one pass over the calibration windows leaves behind for the input of a set of linears.

For a linear layer with weight error ΔW the output error over all tokens is exactly tr(ΔW H ΔWᵀ), H = E[x xᵀ]: every
search reads H and never runs the layer again. Two more sums say how far the rounded layers before have moved the
input, and the residual stream beside it, from what the float model has there.
"""

# x, x̃ (tokens, in) input in the rounded and in the float model · h, h̃ (tokens, hidden) residual stream beside them
# H (in, in) = E[x xᵀ] · D (in, in) = E[(x̃ − x) xᵀ] · R (hidden, in) = E[(h̃ − h) xᵀ] · ΔW (out, in) weight error

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from compress.quantize.columns import blocks
from compress.quantize.precision import multiplies_bfloat16
from compress.quantize.workers import Workers


@dataclass
class Statistics:
    """Means over the calibration tokens, in float32; D and R only where they were asked for."""

    H: Float[Tensor, "in_features in_features"]
    magnitude: Float[Tensor, " in_features"]
    D: Float[Tensor, "in_features in_features"] | None = None
    R: Float[Tensor, "hidden in_features"] | None = None

    def scale_(self, s: Float[Tensor, " in_features"]) -> None:
        """Becomes the statistics of x / s."""
        self.magnitude.div_(s)
        for square in (self.H, self.D):
            if square is not None:
                square.div_(s).div_(s[:, None])
        if self.R is not None:
            self.R.div_(s)


class Accumulator:
    """Sums over batches of tokens; the means at the end do not depend on how the tokens were batched.

    `small` says that D and R are of small differences, as rounding leaves them, which short products tell well enough;
    those are rounded once a batch.
    """

    def __init__(self, *, small: bool = False) -> None:
        self._difference_product = _short_product if small else _product
        self._sums: dict[str, Tensor] = {}
        self._num_tokens = 0

    def add(self, x: Tensor, x_float: Tensor | None = None, drift: Tensor | None = None) -> None:
        """Counts a batch in: the rounded model's inputs; the float model's, and h̃ − h, where they are wanted."""
        rows = x.flatten(0, -2)
        for strip in _strips(rows.shape[1]):  # what lies below the diagonal is the same once more
            self._add(f"H{strip.start}", _product(rows[:, strip], rows[:, strip.start :]))
        self._add("magnitude", torch.linalg.vector_norm(rows, 1, dim=0, dtype=torch.float32))
        if x_float is not None:
            self._add("D", self._difference_product(x_float.flatten(0, -2) - rows, rows))
        if drift is not None:
            self._add("R", self._difference_product(drift.flatten(0, -2), rows))
        self._num_tokens += rows.shape[0]

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name].add_(value) if name in self._sums else value

    def means(self, workers: Workers | None = None) -> Statistics:
        """What all tokens so far give, those of all workers together."""
        if workers is not None:
            self._num_tokens = workers.total(self._num_tokens)
        for total in self._sums.values():
            if workers is not None:
                workers.sum_(total)
            total.div_(self._num_tokens)
        return Statistics(self._gram(), self._sums["magnitude"], self._sums.get("D"), self._sums.get("R"))

    def _gram(self) -> Float[Tensor, "in_features in_features"]:
        """H from the strips of its upper half."""
        size = len(self._sums["magnitude"])
        H = self._sums["magnitude"].new_empty(size, size)
        for strip in _strips(size):
            rows = self._sums.pop(f"H{strip.start}")
            H[strip, strip.start :] = rows
            H[strip.stop :, strip] = rows[:, strip.stop - strip.start :].t()
        return H


def _strips(size: int) -> list[slice]:
    """Four runs of columns, for which a symmetric product costs five eighths of the whole one."""
    return blocks(size, -(-size // 4))


def _product(a: Float[Tensor, "tokens left"], b: Float[Tensor, "tokens right"]) -> Float[Tensor, "left right"]:
    """aᵀ b with float32 sums, also of 16-bit values."""
    if a.dtype == torch.float32:
        return a.t() @ b
    return torch.mm(a.t(), b, out_dtype=torch.float32)


def _short_product(a: Float[Tensor, "tokens left"], b: Float[Tensor, "tokens right"]) -> Float[Tensor, "left right"]:
    """aᵀ b with the eight bits of bfloat16, where a CPU multiplies those several times as fast."""
    if a.device.type == "cpu" and a.dtype == torch.float32 and multiplies_bfloat16("cpu"):
        return (a.t().bfloat16() @ b.bfloat16()).float()
    return _product(a, b)


def output_error(
    delta: Float[Tensor, "out in_features"], H: Float[Tensor, "in_features in_features"]
) -> Float[Tensor, " out"]:
    """Mean squared error of each output for the weight error `delta`: the diagonal of ΔW H ΔWᵀ."""
    return (delta @ H).mul_(delta).sum(1)
