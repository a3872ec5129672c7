"""What one pass over the calibration windows leaves behind for the input of a set of linears.

For a linear layer with weight error ΔW the output error over all tokens is exactly tr(ΔW H ΔWᵀ), H = E[x xᵀ]: every
search reads H and never runs the layer again. Two more sums say how far the rounded layers before have moved the
input, and the residual stream beside it, from what the float model has there.
"""

# x, x̃ (tokens, in) input in the rounded and in the float model · h, h̃ (tokens, hidden) residual stream beside them
# H (in, in) = E[x xᵀ] · D (in, in) = E[(x̃ − x) xᵀ] · R (hidden, in) = E[(h̃ − h) xᵀ] · ΔW (out, in) weight error

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Means over the calibration tokens, in float32; `R` only where the linears write to the residual stream."""

    H: Float[Tensor, "in_features in_features"]
    magnitude: Float[Tensor, " in_features"]
    D: Float[Tensor, "in_features in_features"]
    R: Float[Tensor, "hidden in_features"] | None

    def scaled(self, s: Float[Tensor, " in_features"]) -> "Statistics":
        """The statistics of x / s."""
        R = None if self.R is None else self.R / s
        return replace(self, H=self.H / s / s[:, None], magnitude=self.magnitude / s, D=self.D / s / s[:, None], R=R)


class Accumulator:
    """Sums over batches of tokens; the means at the end do not depend on how the tokens were batched."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_tokens = 0

    def add(self, x: Tensor, x_float: Tensor, drift: Tensor | None) -> None:
        """Counts a batch in: both models' inputs, and h̃ − h where it is wanted."""
        rows = x.flatten(0, -2).float()
        moved = x_float.flatten(0, -2).float() - rows
        self._add("H", rows.t() @ rows)
        self._add("D", moved.t() @ rows)
        self._add("magnitude", rows.abs().sum(0))
        if drift is not None:
            self._add("R", drift.flatten(0, -2).float().t() @ rows)
        self._num_tokens += rows.shape[0]

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name].add_(value) if name in self._sums else value

    def means(self) -> Statistics:
        """What all tokens so far give."""
        means = {name: total / self._num_tokens for name, total in self._sums.items()}
        return Statistics(means["H"], means["magnitude"], means["D"], means.get("R"))


def output_error(
    delta: Float[Tensor, "out in_features"], H: Float[Tensor, "in_features in_features"]
) -> Float[Tensor, " out"]:
    """Mean squared error of each output for the weight error `delta`: the diagonal of ΔW H ΔWᵀ."""
    return torch.einsum("oi,oi->o", delta @ H, delta)
