"""compressed-tensors' `pack-quantized` storage of a 4-bit linear, as LMDeploy's TurboMind and vLLM read it.

Nothing is transposed. Eight inputs of an output share an int32, the first in its lowest nibble; of the zeros, eight
outputs of a group. The library speaks of codes from −8 to 7 and adds 8 on packing, so the words hold our codes as they
are. TurboMind takes zeros of any value; LMDeploy's other engine takes this format symmetric only.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from compress.quantize.grid import Grid, dequantize

BITS = 4
PER_WORD = 8
SYMMETRIC_ZERO = 8.0  # of a symmetric checkpoint, which stores no zeros
SHAPE = "weight_shape"
PARTS = ("weight_packed", "weight_scale", "weight_zero_point", SHAPE)
OPTIONAL = frozenset({"weight_zero_point", SHAPE})


def pack(q: UInt8[Tensor, "rows cols"]) -> Int32[Tensor, "rows words"]:
    """Codes 0..15 as (rows, cols / 8) words; cols must be a multiple of 8."""
    eights = q.to(torch.int32).unflatten(1, (-1, PER_WORD))
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=q.device)
    # Nibbles do not overlap, so the sum is the bitwise or; the top one wraps into the sign as it must.
    return (eights << shifts).sum(-1, dtype=torch.int32)


def unpack(words: Int32[Tensor, "rows words"]) -> UInt8[Tensor, "rows cols"]:
    """The inverse of `pack`."""
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 15).flatten(1).to(torch.uint8)


def pack_linear(q: UInt8[Tensor, "out in_features"], grid: Grid) -> dict[str, Tensor]:
    """The tensors that the format has for one linear; scales are float16."""
    return {
        "weight_packed": pack(q),
        "weight_scale": grid.scales.half().contiguous(),
        "weight_zero_point": pack(grid.zeros.t().to(torch.uint8)).t().contiguous(),
        SHAPE: torch.tensor(q.shape),
    }


def unpack_linear(stored: Mapping[str, Tensor]) -> tuple[Tensor, Grid]:
    """Codes and grid of a stored linear, the inverse of `pack_linear`; without zeros it is symmetric."""
    q, s = unpack(stored["weight_packed"]), stored["weight_scale"].float()
    packed_zeros = stored.get("weight_zero_point")
    z = torch.full_like(s, SYMMETRIC_ZERO) if packed_zeros is None else unpack(packed_zeros.t()).t().float()
    return q, Grid(s, z.contiguous(), BITS, q.shape[1] // s.shape[1])


def unpacked_weight(stored: Mapping[str, Tensor]) -> Tensor:
    """The float32 weight (out, in) that a stored linear stands for."""
    return dequantize(*unpack_linear(stored))


def quantization_config(group_size: int, kept: Sequence[str] = ()) -> dict[str, object]:
    """What `config.json` says of the format; `kept` are the linears that stay in 16 bits, by their canonical names."""
    weights = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *kept],
    }
