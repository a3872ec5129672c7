"""How exactly a GPU computes, and how repeatably."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch


@contextmanager
def float32_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """While open, products are exact to float32 ("highest") or run on the matrix units in TF32 ("high")."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def repeatable() -> Iterator[None]:
    """While open, every operation gives the same bits in every run; attention's gradient would not otherwise."""
    settings: Any = torch.utils.deterministic  # a module with one property, which its types do not know
    before, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled


@cache
def multiplies_bfloat16(kind: str) -> bool:
    """Whether a device of this kind has instructions for it; a CPU without them is far slower than in float32."""
    if kind != "cpu":
        return True
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot say
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
