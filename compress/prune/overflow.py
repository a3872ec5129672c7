"""What is said where activations are no numbers any more, whatever was to be measured of them."""

import torch

from compress.errors import CompressError


def out_of_range(place: str, dtype: torch.dtype) -> CompressError:
    """The refusal, for the first place where it shows."""
    return CompressError(
        f"{place}: activations leave the range of {dtype}; set TURBOPRESS_DEVICE=cpu, where they have more"
    )
