"""Attention while a model writes: the keys are one longer at every token."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def growing_keys() -> Iterator[None]:
    """While open, attention is not cuDNN's, which plans anew for every length that it has not seen: once a token."""
    with sdpa_kernel(PLANLESS):
        yield
