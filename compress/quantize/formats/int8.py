"""8-bit whole-number weights with one scale an output, as LMDeploy's `smooth_quant` stores them.

Its PyTorch engine multiplies them with inputs that it rounds to 8 bits as well, each token on a scale of its own: W8A8.
TurboMind does not read this format.
"""

# W (out, in) weight · q (out, in) codes −127..127 · s (out, 1) scale · x (…, in) inputs

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 127
PARTS = ("weight", "scale")
SMALLEST_INPUT = 1e-7  # a token of zeros must not divide by zero; the engine's own number


def pack_linear(W: Float[Tensor, "out in_features"]) -> dict[str, Tensor]:
    """The stored tensors: each weight's nearest of 255 points between the extremes of its output."""
    largest = W.float().abs().amax(1, keepdim=True)
    s = torch.where(largest > 0, largest / LARGEST, 1.0)
    return {"weight": (W.float() / s).round().clamp(-LARGEST, LARGEST).to(torch.int8), "scale": s}


def unpacked_weight(stored: Mapping[str, Tensor]) -> Tensor:
    """The float32 weight that a stored linear stands for."""
    return stored["weight"].float() * stored["scale"].float()


def rounded_inputs(x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... in_features"]:
    """What the engine makes of a linear's inputs: each token's nearest of 255 points."""
    s = x.float().abs().amax(-1, keepdim=True).clamp(min=SMALLEST_INPUT) / LARGEST
    return ((x.float() / s).round() * s).to(x.dtype)


def quantization_config(kept: Sequence[str] = ()) -> dict[str, object]:
    """What `config.json` says of the format; `kept` are the linears that stay in 16 bits, by their canonical names."""
    said: dict[str, object] = {"quant_method": "smooth_quant", "quant_dtype": "int8"}
    return said | ({"modules_to_not_convert": list(kept)} if kept else {})
