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


def gptq(
    W: Float[Tensor, "out in_features"],
    H: Float[Tensor, "in_features in_features"],
    grid: Grid,
    damping: float,
    place: str,
) -> UInt8[Tensor, "out in_features"]:
    """Codes on `grid` of about the least output error that rounding one column after another can reach."""
    order = H.diagonal().argsort(descending=True, stable=True)
    U = _inverse_factor(H[order][:, order], damping, place)
    group = order // grid.group_size
    scales, zeros = grid.scales[:, group], grid.zeros[:, group]
    remaining, codes = W[:, order].clone(), torch.empty_like(W)
    for start in range(0, W.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, W.shape[1]))
        errors = _round_block_(remaining[:, block], codes[:, block], scales[:, block], zeros[:, block], U[block, block])
        remaining[:, block.stop :] -= errors @ U[block, block.stop :]
    return codes[:, order.argsort()].to(torch.uint8)


def _round_block_(W: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, U: Tensor) -> Float[Tensor, "out block"]:
    """Rounds a block's columns in turn, moving the later ones; returns each column's error over its U diagonal."""
    errors = torch.empty_like(W)
    for column in range(W.shape[1]):
        w, s, z = W[:, column], scales[:, column], zeros[:, column]
        q = ((w / s).round() + z).clamp(0, 15)
        codes[:, column] = q
        errors[:, column] = (w - (q - z) * s) / U[column, column]
        W[:, column + 1 :] -= errors[:, column, None] * U[column, None, column + 1 :]
    return errors


def _inverse_factor(H: Tensor, damping: float, place: str) -> Float[Tensor, "in_features in_features"]:
    """U with UᵀU = (H + damping · mean(diag H) · I)⁻¹; channels that were never active get a diagonal of 1."""
    H = H.clone()
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(H)
    if failed.item() or not torch.isfinite(lower).all():
        raise CompressError(f"{place}: Gram is singular at damping {damping}; raise rounding.damping or add windows")
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper
