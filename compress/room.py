"""A device whose memory is full ends a work in one line: where it was, what was asked of the device, what helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress.errors import CompressError, first_line

FULL = "the device's memory is full"
NO_CONTEXT = "CUDA error: out of memory"  # not even CUDA itself fits: torch has no error of its own for that


@contextmanager
def room(place: str, remedy: str, full: str = FULL) -> Iterator[None]:
    """Wherever the device's memory runs out in here, that is said of `place`, and what helps."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_CONTEXT not in str(error):
            raise
        raise CompressError(f"{place}: {full} ({_asked(error)}); {remedy}") from error


def _asked(error: RuntimeError) -> str:
    """The first sentences of what the allocator says, which name its device and sizes."""
    return ". ".join(first_line(error).split(". ")[:2]).rstrip(".")
