"""AWQ's `gemm` storage of a 4-bit linear, as LMDeploy, vLLM and transformers read it, and its inverse.

Everything is transposed to (in, out) and eight outputs share an int32; nibble i of a word holds output
`NIBBLES[i]` of its eight (facts: lmdeploy 0.18, turbomind/weight_format.py). Zeros are stored as they are.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from compress.quantize.grid import Grid, dequantize

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4
PER_WORD = 8
PARTS = ("qweight", "qzeros", "scales")  # the last part of each stored tensor's name


def pack(q: UInt8[Tensor, "rows cols"]) -> Int32[Tensor, "cols words"]:
    """Codes 0..15 with `rows` outputs as (cols, rows / 8) words; rows must be a multiple of 8."""
    eights = q.t().to(torch.int32).unflatten(1, (-1, PER_WORD))[..., list(NIBBLES)]
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=q.device)
    # Nibbles do not overlap, so the sum is the bitwise or; the top one wraps into the sign as it must.
    return (eights << shifts).sum(-1, dtype=torch.int32)


def unpack(words: Int32[Tensor, "cols words"]) -> UInt8[Tensor, "rows cols"]:
    """The inverse of `pack`."""
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=words.device)
    eights = (words[..., None] >> shifts) & 15
    order = torch.tensor(NIBBLES, device=words.device).argsort()
    return eights[..., order].flatten(1).t().contiguous().to(torch.uint8)


def pack_linear(q: UInt8[Tensor, "out in_features"], grid: Grid) -> dict[str, Tensor]:
    """The tensors that AWQ stores for one linear: `qweight`, `qzeros`, `scales` (float16)."""
    return {
        "qweight": pack(q),
        "qzeros": pack(grid.zeros.to(torch.uint8)),
        "scales": grid.scales.t().contiguous().half(),
    }


def unpack_linear(stored: Mapping[str, Tensor]) -> tuple[Tensor, Grid]:
    """Codes and grid of a stored linear, the inverse of `pack_linear`."""
    q, z, s = unpack(stored["qweight"]), unpack(stored["qzeros"]), stored["scales"].float().t().contiguous()
    return q, Grid(s, z.float(), BITS, q.shape[1] // s.shape[1])


def unpacked_weight(stored: Mapping[str, Tensor]) -> Tensor:
    """The float32 weight (out, in) that a stored linear stands for."""
    return dequantize(*unpack_linear(stored))


def quantization_config(group_size: int, kept: Sequence[str] = ()) -> dict[str, object]:
    """What `config.json` says of the format; engines read the format and nothing of how it was found.

    `kept` are the linears that stay in 16 bits, by their canonical names.
    """
    said: dict[str, object] = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": BITS,
        "group_size": group_size,
        "zero_point": True,
    }
    return said | ({"modules_to_not_convert": list(kept)} if kept else {})
