"""Error-compensating rounding (GPTQ, arXiv 2210.17323) on grids that are already fixed.

Columns are rounded in order of falling H diagonal, and what each one's rounding did to the output is made good by the
columns still to come. The grids come from the scale and clip searches and do not move, so the order of columns is free
and the result stays in AWQ's plain format.
"""

# W (out, in) weight · U upper factor of H⁻¹ (the paper's Algorithm 1) · s, z (groups, out) scales and zeros, transposed

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from compress.quantize.columns import change_in_turn_
from compress.quantize.factor import Factor
from compress.quantize.grid import Grid


def gptq(W: Float[Tensor, "out in_features"], factor: Factor, grid: Grid) -> UInt8[Tensor, "out in_features"]:
    """Codes on `grid` of about the least output error that rounding one column after another can reach."""
    order, U = factor.order, factor.U
    group = order // grid.group_size
    # Transposed, so that what the loop works on, one column of W, lies in one piece.
    Wt, scales, zeros = (t.t().contiguous() for t in (W[:, order], grid.scales, grid.zeros))
    codes = torch.empty_like(Wt)
    round_block_ = _on_gpu_ if W.is_cuda else round_block_plainly_

    def round_(at: slice) -> Tensor:
        return round_block_(Wt[at], codes[at], U[at, at], scales, zeros, group[at], grid.top).neg_()

    change_in_turn_(Wt, U.t(), round_)
    return codes[order.argsort()].t().contiguous().to(torch.uint8)


def round_block_plainly_(
    Wt: Float[Tensor, "block out"],
    codes: Float[Tensor, "block out"],
    U: Float[Tensor, "block block"],
    scales: Float[Tensor, "groups out"],
    zeros: Float[Tensor, "groups out"],
    group: Int64[Tensor, " block"],
    top: int,
) -> Float[Tensor, "block out"]:
    """Rounds a block's columns in turn, moving the later ones; returns each column's error over its U diagonal."""
    errors = torch.empty_like(Wt)
    for column, (w, s, z) in enumerate(zip(Wt, scales[group], zeros[group], strict=True)):
        q = codes[column] = (w / s).round_().add_(z).clamp_(0, top)
        errors[column] = (w - (q - z).mul_(s)) / U[column, column]
        Wt[column + 1 :].addr_(U[column, column + 1 :], errors[column], alpha=-1)
    return errors


def _on_gpu_(
    Wt: Tensor, codes: Tensor, U: Tensor, scales: Tensor, zeros: Tensor, group: Tensor, top: int
) -> Float[Tensor, "block out"]:
    from compress.quantize.kernels import round_columns_  # noqa: PLC0415 - Triton is there where a GPU is

    return round_columns_(Wt, codes, U, scales, zeros, group, top)
