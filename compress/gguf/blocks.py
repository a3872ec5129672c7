"""GGML's 4-bit blocks: 32 inputs of an output with a float16 step, and in Q4_1 a float16 least value as well.

Ours is w = (q − z)·s, Q4_1's is w = q·d + m. So d = s and m = −s·z: codes and scales are carried as they are, each
scale repeated for the blocks of its group. m alone can lose something, for s has 11 bits and z up to 4: where z is
neither 0 nor a power of two, m may have to be rounded to float16, by at most 0.73 % of a step s (z = 15). All weights
of the group move by that together. A symmetric model (every z is 8) is Q4_0 without any rounding, w = (q − 8)·d.
"""

# q (out, in) codes · s, z (out, groups) · d, m (out, blocks) float16 step and least value of a block

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from compress.errors import CompressError
from compress.quantize.grid import Grid

BLOCK = 32
HALF = BLOCK // 2
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Rounded:
    """What float16 did to the least values of some groups: how many it moved, and by how much of a step at most."""

    groups: int = 0
    moved: int = 0
    worst_steps: float = 0.0

    def __add__(self, other: "Rounded") -> "Rounded":
        return Rounded(self.groups + other.groups, self.moved + other.moved, max(self.worst_steps, other.worst_steps))


def require_blocks(q: UInt8[Tensor, "out in_features"], grid: Grid, place: str) -> None:
    """Refuses a grid that the blocks cannot hold: no silent second rounding."""
    if grid.group_size % BLOCK or q.shape[1] % BLOCK:
        raise CompressError(
            f"{place}: groups of {grid.group_size} over {q.shape[1]} inputs; GGUF's blocks are {BLOCK}, "
            f"quantize with a group_size that is a multiple of {BLOCK}"
        )
    if not torch.equal(grid.scales, grid.scales.half().float()):
        raise CompressError(f"{place}: scales are no float16 numbers; store the model in torch_dtype float16")
    if (largest := float((grid.scales * grid.zeros).max())) > LARGEST:
        raise CompressError(f"{place}: scale times zero is {largest:.0f}, float16 ends at {LARGEST:.0f}; scale it down")


def pack_q4_1(q: UInt8[Tensor, "out in_features"], grid: Grid) -> UInt8[Tensor, "out bytes"]:
    """Codes and grid as Q4_1: of each block the step, the least value, then the codes."""
    least = -(grid.scales * grid.zeros)
    return _blocks(q, [_spread(x, grid) for x in (grid.scales, least)])


def pack_q4_0(q: UInt8[Tensor, "out in_features"], grid: Grid) -> UInt8[Tensor, "out bytes"]:
    """Codes and symmetric grid as Q4_0: of each block the step, then the codes."""
    return _blocks(q, [_spread(grid.scales, grid)])


def unpack_q4_1(stored: UInt8[Tensor, "out bytes"]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, and of each block its step and least value: what `pack_q4_1` has written."""
    blocks = stored.unflatten(1, (-1, 4 + HALF))
    step, least = (_half(blocks[..., at : at + 2]) for at in (0, 2))
    return _codes(blocks[..., 4:]), step, least


def unpack_q4_0(stored: UInt8[Tensor, "out bytes"]) -> tuple[Tensor, Tensor]:
    """Codes, and of each block its step: what `pack_q4_0` has written."""
    blocks = stored.unflatten(1, (-1, 2 + HALF))
    return _codes(blocks[..., 2:]), _half(blocks[..., :2])


def rounding(grid: Grid) -> Rounded:
    """What Q4_1 makes of a grid's zeros."""
    least = grid.scales * grid.zeros
    moved = (least.half().float() - least).abs() / grid.scales
    return Rounded(moved.numel(), int(moved.count_nonzero()), float(moved.max()))


def _blocks(q: Tensor, halves: list[Tensor]) -> Tensor:
    pairs = q.unflatten(1, (-1, 2, HALF))  # the first half of a block lies in the low nibbles
    codes = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    heads = [half[..., None].contiguous().view(torch.uint8) for half in halves]
    return torch.cat([*heads, codes], -1).flatten(1)


def _spread(x: Float[Tensor, "out groups"], grid: Grid) -> Tensor:
    """Of each group to its blocks, in float16."""
    return x.half().repeat_interleave(grid.group_size // BLOCK, 1)


def _half(two: UInt8[Tensor, "out blocks 2"]) -> Float[Tensor, "out blocks"]:
    return two.contiguous().view(torch.float16)[..., 0]


def _codes(nibbles: UInt8[Tensor, "out blocks half"]) -> UInt8[Tensor, "out in_features"]:
    return torch.stack([nibbles & 15, nibbles >> 4], -2).flatten(1)
