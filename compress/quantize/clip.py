"""Shrinking the range of each group of weights when that lowers the output error.

A group's largest weight sets the step for all of it; giving that weight up a little makes every other one finer. The
error of a group alone is δ Hg δᵀ with Hg the block of H on the diagonal: what one group does to another's error is
left to the rounding that follows.
"""

# W (out, in) weight · Hg (groups, g, g) diagonal blocks of the Gram matrix · δ (out, groups, g) rounding error

import torch
from jaxtyping import Float
from torch import Tensor

from compress.quantize.grid import Grid, fit_grid, nearest
from compress.quantize.recipe import ClipSearch

ENTRIES_AT_ONCE = 2**25  # weights under trial at the same time: small matrices in one go, large ones factor by factor


def search_clip(
    W: Float[Tensor, "out in_features"],
    H: Float[Tensor, "in_features in_features"],
    bits: int,
    group_size: int,
    search: ClipSearch,
) -> Grid:
    """The grid whose every group has the shrink factor, 1 among them, of least error."""
    Hg = diagonal_blocks(H, group_size)
    shape = (W.shape[0], Hg.shape[0])
    best_error = W.new_full(shape, float("inf"))
    best_shrink = W.new_ones(shape)
    factors = torch.linspace(1.0, search.least, search.points, device=W.device)
    for some in factors.split(max(1, ENTRIES_AT_ONCE // W.numel())):
        error, which = _group_errors(W, Hg, some, bits).min(0)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_shrink = torch.where(better, some[which], best_shrink)
    return fit_grid(W, bits, group_size, best_shrink)


def diagonal_blocks(
    H: Float[Tensor, "in_features in_features"], group_size: int
) -> Float[Tensor, "groups {group_size} {group_size}"]:
    """The blocks of H between the channels of one group."""
    blocks = H.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _group_errors(
    W: Tensor, Hg: Tensor, factors: Float[Tensor, " candidates"], bits: int
) -> Float[Tensor, "candidates out groups"]:
    """The error of each group under each shrink factor."""
    rows = W.repeat(len(factors), 1)
    shrink = factors.repeat_interleave(len(W))[:, None].expand(-1, len(Hg))
    delta = nearest(rows, fit_grid(rows, bits, Hg.shape[1], shrink)).sub_(rows).unflatten(1, (-1, Hg.shape[1]))
    moved = torch.bmm(delta.transpose(0, 1), Hg).transpose(0, 1)
    return (moved * delta).sum(-1).unflatten(0, (len(factors), -1))
