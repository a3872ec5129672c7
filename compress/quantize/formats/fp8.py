"""8-bit floating-point weights with one scale for each 128×128 block, as DeepSeek published theirs.

`weight` holds float8 numbers in the linear's own shape and `weight_scale_inv` what to multiply each block by; both of
LMDeploy's engines, vLLM, SGLang and transformers read it. Each number keeps 3 bits of mantissa whatever its size, so a
block loses little to its outliers, and no calibration is needed.
"""

# W (out, in) weight · s (row blocks, column blocks) scale of each block

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 128
TYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(TYPE).max
PARTS = ("weight", "weight_scale_inv")


def block_scales(W: Float[Tensor, "out in_features"]) -> Float[Tensor, "row_blocks column_blocks"]:
    """The scales that give each block's largest weight the largest float8; a block of zeros has scale 1."""
    rows, columns = (-size % BLOCK for size in W.shape)
    whole = torch.nn.functional.pad(W.float(), (0, columns, 0, rows))
    largest = whole.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).abs().amax((1, 3))
    return torch.where(largest > 0, largest / LARGEST, 1.0)


def spread(s: Float[Tensor, "row_blocks column_blocks"], W: Tensor) -> Float[Tensor, "out in_features"]:
    """Each weight's scale: that of its block, of which the last may be cut."""
    return s.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: W.shape[0], : W.shape[1]]


def pack_linear(W: Float[Tensor, "out in_features"], s: Float[Tensor, "row_blocks column_blocks"]) -> dict[str, Tensor]:
    """The stored tensors of a weight on these scales; what is beyond the largest float8 becomes the largest."""
    return {"weight": (W.float() / spread(s, W)).clamp(-LARGEST, LARGEST).to(TYPE), "weight_scale_inv": s.float()}


def unpacked_weight(stored: Mapping[str, Tensor]) -> Tensor:
    """The float32 weight that a stored linear stands for."""
    weight = stored["weight"].float()
    return weight * spread(stored["weight_scale_inv"].float(), weight)


def quantization_config(kept: Sequence[str] = ()) -> dict[str, object]:
    """What `config.json` says of the format; `kept` are the linears that stay in 16 bits, by their canonical names."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head", *kept],
    }
