"""The asymmetric grid of a group of weights: w ≈ (q − z) · s, with q and z whole numbers of `bits` bits.

Scales are rounded to float16 where the grid is made, so that every later step sees the numbers that are stored.
"""

# W (out, in) weight · s, z (out, groups) scale and zero of each run of `group_size` inputs · q (out, in) codes

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: a group of equal tiny weights must not divide by zero


@dataclass(frozen=True)
class Grid:
    """Scales and zeros of a weight's groups, both float32 on the weight's device; scales are float16 numbers."""

    scales: Float[Tensor, "out groups"]
    zeros: Float[Tensor, "out groups"]
    bits: int
    group_size: int

    @property
    def rest(self) -> tuple[Tensor, int, int]:
        """Everything but the scales, in the order of the fields."""
        return self.zeros, self.bits, self.group_size

    def rows(self, rows: slice) -> "Grid":
        """The grid of some outputs."""
        return Grid(self.scales[rows], self.zeros[rows], self.bits, self.group_size)

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


def fit_grid(
    W: Float[Tensor, "out in_features"],
    bits: int,
    group_size: int,
    shrink: Float[Tensor, "out groups"] | None = None,
) -> Grid:
    """The grid that spans each group from its least to its greatest weight (and zero), times `shrink` where given."""
    groups = W.unflatten(1, (-1, group_size))
    high, low = groups.amax(-1).clamp(min=0), groups.amin(-1).clamp(max=0)
    if shrink is not None:
        high, low = high * shrink, low * shrink
    top = 2**bits - 1
    scales = ((high - low) / top).half().float().clamp(min=SMALLEST_SCALE)
    return Grid(scales, (-low / scales).round().clamp(0, top), bits, group_size)


def quantize(W: Float[Tensor, "out in_features"], grid: Grid) -> Integer[Tensor, "out in_features"]:
    """Codes (uint8) of the nearest grid points."""
    groups = W.unflatten(1, (-1, grid.group_size))
    codes = (groups / grid.scales[..., None]).round() + grid.zeros[..., None]
    return codes.clamp(0, grid.top).to(torch.uint8).flatten(1)


def dequantize(q: Integer[Tensor, "out in_features"], grid: Grid) -> Float[Tensor, "out in_features"]:
    """The weights that codes stand for, in float32."""
    groups = q.unflatten(1, (-1, grid.group_size)).float()
    return ((groups - grid.zeros[..., None]) * grid.scales[..., None]).flatten(1)


def nearest(W: Float[Tensor, "out in_features"], grid: Grid) -> Float[Tensor, "out in_features"]:
    """Each weight's nearest grid point: `dequantize(quantize(W))` without the codes between."""
    s, z = grid.scales[..., None], grid.zeros[..., None]
    codes = (W.unflatten(1, (-1, grid.group_size)) / s).round_().add_(z).clamp_(0, grid.top)
    return codes.sub_(z).mul_(s).flatten(1)
