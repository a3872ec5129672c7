"""What is not quantized, in the 16-bit type that engines compute in."""

import torch
from torch import Tensor

from compress.errors import CompressError


def narrowed(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies in `dtype`; a value that it cannot hold is refused."""
    copies = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, copy in copies.items():
        if not torch.isfinite(copy).all():
            largest, limit = float(tensors[name].abs().max()), torch.finfo(dtype).max
            kind = str(dtype).removeprefix("torch.")
            raise CompressError(f"{name}: {largest:.3g} exceeds {kind}'s {limit:.5g}; choose a format in another type")
    return copies
