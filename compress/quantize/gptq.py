"""Error-compensating rounding (GPTQ, arXiv 2210.17323) on grids that are already fixed.

Columns are rounded in order of falling H diagonal, and what each one's rounding did to the output is made good by the
columns still to come. The grids come from the scale and clip searches and do not move, so the order of columns is free
and the result stays in AWQ's plain format.
"""

# W (out, in) weight · H (in, in) Gram · U upper Cholesky factor of H⁻¹ (the paper's Algorithm 1) · B columns a block

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from compress.errors import CompressError
from compress.quantize.grid import Grid

BLOCK = 128


def damped(H: Float[Tensor, "in_features in_features"], damping: float) -> Float[Tensor, "in_features in_features"]:
    """H with `damping` times its mean diagonal added to it; channels that were never active get a diagonal of 1."""
    H = H.clone()
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    return H


def gptq(
    W: Float[Tensor, "out in_features"], H: Float[Tensor, "in_features in_features"], grid: Grid, place: str
) -> UInt8[Tensor, "out in_features"]:
    """Codes on `grid` of about the least output error that rounding one column after another can reach; H is damped."""
    order = H.diagonal().argsort(descending=True, stable=True)
    U = _inverse_factor(H[order][:, order], place)
    group = order // grid.group_size
    # Transposed, so that what the loop works on, one column of W, lies in one piece.
    Wt, scales, zeros = (t.t().contiguous() for t in (W[:, order], grid.scales[:, group], grid.zeros[:, group]))
    codes = torch.empty_like(Wt)
    for start in range(0, len(Wt), BLOCK):
        block = slice(start, min(start + BLOCK, len(Wt)))
        errors = _round_block_(Wt[block], codes[block], scales[block], zeros[block], U[block, block], grid.top)
        Wt[block.stop :] -= U[block, block.stop :].t() @ errors
    return codes[order.argsort()].t().contiguous().to(torch.uint8)


def _round_block_(
    Wt: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, U: Tensor, top: int
) -> Float[Tensor, "block out"]:
    """Rounds a block's columns in turn, moving the later ones; returns each column's error over its U diagonal."""
    errors = torch.empty_like(Wt)
    for column, (w, s, z) in enumerate(zip(Wt, scales, zeros, strict=True)):
        q = codes[column] = (w / s).round_().add_(z).clamp_(0, top)
        errors[column] = (w - (q - z).mul_(s)) / U[column, column]
        Wt[column + 1 :].addr_(U[column, column + 1 :], errors[column], alpha=-1)
    return errors


def _inverse_factor(H: Tensor, place: str) -> Float[Tensor, "in_features in_features"]:
    """U with UᵀU = H⁻¹.

    With J the reversal of order, JHJ = LLᵀ gives H = (JLJ)(JLJ)ᵀ, whose first factor is upper: U is its inverse.
    """
    lower, failed = torch.linalg.cholesky_ex(H.flip(0, 1))
    if failed.item() or not torch.isfinite(lower).all():
        raise CompressError(f"{place}: Gram matrix is singular; raise rounding.damping or add windows")
    identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
    upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return upper
