"""Lowering the output error of codes that are already good: scales fitted to codes, then codes moved one by one.

GPTQ decides each column once, and on scales from before any rounding. With the codes known, the best scale of one
group, all others held, is a division; with the scales known, so is the best code of one column, and a rounding
(coordinate descent, as in QuantEase, arXiv 2309.01885). Neither step can raise tr(ΔW H ΔWᵀ).
"""

# W (out, in) weight · H (in, in) damped Gram · q codes, s, z scales and zeros · c (in, out) = q − z, transposed

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from compress.quantize.clip import diagonal_blocks
from compress.quantize.columns import change_in_turn_
from compress.quantize.grid import SMALLEST_SCALE, Grid, dequantize


def refine(
    W: Float[Tensor, "out in_features"],
    H: Float[Tensor, "in_features in_features"],
    q: UInt8[Tensor, "out in_features"],
    grid: Grid,
    rounds: int,
) -> tuple[UInt8[Tensor, "out in_features"], Grid]:
    """Codes and grid after some rounds of both steps."""
    for _ in range(rounds):
        grid = fit_scales(W, H, q, grid)
        q = descend(W, H, q, grid)
    return q, grid


def fit_scales(W: Tensor, H: Tensor, q: Tensor, grid: Grid) -> Grid:
    """The grid after each group's scale, in turn, has had its best value given the codes and all other scales."""
    c = (q.t().float().unflatten(0, (-1, grid.group_size)) - grid.zeros.t()[:, None]).flatten(0, 1).contiguous()
    scales = grid.scales.t().clone(memory_format=torch.contiguous_format)  # of one group, contiguous() is no copy
    curvature = _curvature(H, c, grid.group_size)
    slope = H @ (dequantize(q, grid) - W).t()  # half the gradient of the error, by column
    fit_group_ = _fit_on_gpu_ if W.is_cuda else fit_group_plainly_

    def fit_(at: slice) -> Tensor:
        group = at.start // grid.group_size
        return fit_group_(slope[at], c[at], curvature[group], scales[group])

    change_in_turn_(slope, H, fit_, grid.group_size)
    return Grid(scales.t().contiguous(), *grid.rest)


def _curvature(H: Tensor, c: Float[Tensor, "in_features out"], group_size: int) -> Float[Tensor, "groups out"]:
    """Half the second derivative of each output's error by each group's scale."""
    groups = c.unflatten(0, (-1, group_size))
    return torch.bmm(diagonal_blocks(H, group_size), groups).mul_(groups).sum(1)


def fit_group_plainly_(
    slope: Float[Tensor, "group out"],
    c: Float[Tensor, "group out"],
    curvature: Float[Tensor, " out"],
    scales: Float[Tensor, " out"],
) -> Float[Tensor, "group out"]:
    """Moves a group's scales to their best float16 values; returns by how much its weights have changed."""
    along = (slope * c).sum(0)
    wanted = scales - along / curvature.clamp(min=torch.finfo(curvature.dtype).tiny)
    moved = wanted.half().float().clamp(min=SMALLEST_SCALE) - scales
    # Rounded to float16 the best scale may be worse than the one that stands.
    moved = torch.where((2 * along + curvature * moved) * moved < 0, moved, torch.zeros_like(moved))
    scales += moved
    return c * moved


def leans(W: Tensor, H: Tensor, q: Tensor, grid: Grid) -> Float[Tensor, "out in_features"]:
    """How far, in steps of the grid, each code's best value lies from it, all others held."""
    slope = (dequantize(q, grid) - W) @ H
    steps = slope / H.diagonal().clamp(min=torch.finfo(H.dtype).tiny)
    return -(steps.unflatten(1, (-1, grid.group_size)) / grid.scales[..., None]).flatten(1)


def descend(W: Tensor, H: Tensor, q: Tensor, grid: Grid) -> UInt8[Tensor, "out in_features"]:
    """Codes after each column, in order of falling H diagonal, has had its best value given all others."""
    order = H.diagonal().argsort(descending=True, stable=True)
    H = H[order][:, order]
    slope = H @ (dequantize(q, grid) - W).t()[order]  # half the gradient of the error, by column
    group = order // grid.group_size
    scales = grid.scales.t().contiguous()
    codes = q.t()[order].float().contiguous()
    descend_block_ = _on_gpu_ if W.is_cuda else descend_block_plainly_

    def descend_(at: slice) -> Tensor:
        return descend_block_(slope[at], codes[at], H[at, at], scales, group[at], grid.top)

    change_in_turn_(slope, H, descend_)
    return codes[order.argsort()].t().contiguous().to(torch.uint8)


def descend_block_plainly_(
    slope: Float[Tensor, "block out"],
    codes: Float[Tensor, "block out"],
    H: Float[Tensor, "block block"],
    scales: Float[Tensor, "groups out"],
    group: Int64[Tensor, " block"],
    top: int,
) -> Float[Tensor, "block out"]:
    """Moves a block's codes in turn; returns by how much each column's weights have changed.

    Zeros are whole numbers, so how far a code is to move does not depend on them.
    """
    changes, s = torch.empty_like(slope), scales[group]
    steps = 1 / (s * H.diagonal()[:, None])  # of the grid, by which a slope of 1 moves a code
    for column, (g, code, change) in enumerate(zip(slope, codes, changes, strict=True)):
        moved = torch.mul(g, steps[column]).neg_().add_(code).round_().clamp_(0, top)
        torch.sub(moved, code, out=change).mul_(s[column])
        slope[column + 1 :].addr_(H[column, column + 1 :], change)
        code.copy_(moved)
    return changes


def _on_gpu_(
    slope: Tensor, codes: Tensor, H: Tensor, scales: Tensor, group: Tensor, top: int
) -> Float[Tensor, "block out"]:
    from compress.quantize.kernels import descend_columns_  # noqa: PLC0415 - Triton is there where a GPU is

    return descend_columns_(slope, codes, H, scales, group, top)


def _fit_on_gpu_(slope: Tensor, c: Tensor, curvature: Tensor, scales: Tensor) -> Float[Tensor, "group out"]:
    from compress.quantize.kernels import fit_group_  # noqa: PLC0415 - Triton is there where a GPU is

    return fit_group_(slope, c, curvature, scales)
