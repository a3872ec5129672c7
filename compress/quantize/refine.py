"""Lowering the output error of codes that are already good: scales fitted to codes, then codes moved one by one.

GPTQ decides each column once, and on scales from before any rounding. With the codes known, each group's best scale is
a small least-squares problem; with the scales known, the best code of one column, all others held, is a division and a
rounding (coordinate descent, as in QuantEase, arXiv 2309.01885). Neither step can raise tr(ΔW H ΔWᵀ).
"""

# W (out, in) weight · H (in, in) damped Gram · q codes, s, z scales and zeros · c (out, groups, g) = q − z
# A (out, groups, groups), b (out, groups): the normal equations of the scales of a row

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from compress.quantize.grid import SMALLEST_SCALE, Grid, dequantize

ROWS = 1024  # rows whose normal equations are made at once
FURTHEST = 2.0  # a scale may move by this factor; beyond, the equations were near singular


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
    """The grid whose scales, for these codes and zeros, have the least output error in each row."""
    parts = [_fit_rows(W[rows], H, q[rows], grid.rows(rows)) for rows in _blocks(len(W))]
    return Grid(torch.cat(parts), *grid.rest)


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, size, ROWS)]


def _fit_rows(W: Tensor, H: Tensor, q: Tensor, grid: Grid) -> Float[Tensor, "out groups"]:
    c = q.float().unflatten(1, (-1, grid.group_size)) - grid.zeros[..., None]
    count = c.shape[1]
    blocks = H.unflatten(0, (count, -1)).unflatten(2, (count, -1))
    A = torch.stack([((c[:, a] @ blocks[a].flatten(1)).unflatten(1, (count, -1)) * c).sum(-1) for a in range(count)], 1)
    b = ((W @ H).unflatten(1, (count, -1)) * c).sum(-1)
    ridge = 1e-6 * A.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(A.dtype).tiny)
    A = A + ridge[:, None, None] * torch.eye(count, device=A.device)
    fitted = torch.linalg.solve(A, b).half().float().clamp(min=SMALLEST_SCALE)
    sane = (fitted > grid.scales / FURTHEST) & (fitted < grid.scales * FURTHEST)
    return torch.where(sane, fitted, grid.scales)


def descend(W: Tensor, H: Tensor, q: Tensor, grid: Grid) -> UInt8[Tensor, "out in_features"]:
    """Codes after each column, in order of falling H diagonal, has had its best value given all others."""
    delta = (dequantize(q, grid) - W).t()
    slope = H @ delta  # half the gradient of the error, by column
    scales, zeros = (t.repeat_interleave(grid.group_size, 1).t().contiguous() for t in (grid.scales, grid.zeros))
    codes = q.t().float().contiguous()
    diagonal = H.diagonal().clamp(min=torch.finfo(H.dtype).tiny)
    for column in H.diagonal().argsort(descending=True, stable=True).tolist():
        s, z = scales[column], zeros[column]
        best = (codes[column] - z) * s - slope[column] / diagonal[column]
        moved = (best / s).round_().add_(z).clamp_(0, grid.top)
        slope.addr_(H[column], (moved - codes[column]) * s)
        codes[column] = moved
    return codes.t().contiguous().to(torch.uint8)
