"""Parameters that are trained as they are stored, and by how far they are from where they began.

A scale, a norm's weight or an embedding is computed with as its 16-bit type has it, so that what is measured in
training is what is written; rounding passes gradients as if it were not there. What the optimiser sees is the way from
the start in units of the number itself, or of the matrix's root mean square: one learning rate fits all of them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

FURTHEST = 0.5  # of itself or of the root mean square: how far a number moves at most
_CLASSES: dict[tuple[type, str], type] = {}  # of modules with such a parameter


class _Stored(torch.autograd.Function):
    """A number as it is stored; the gradient is that of the number."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, stored: Tensor) -> Tensor:
        return stored.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Moving(nn.Module):
    """Numbers of a stored type from how far each has moved: in parts of itself, or of the root mean square."""

    start: Tensor

    def __init__(self, start: Tensor, dtype: torch.dtype, rate: float | None) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.dtype = dtype
        self.rate = 1.0 if rate is None else rate
        self.rms = None if rate is None else float(start.detach().square().mean().sqrt())

    def forward(self, moved: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The numbers, float32 values of the stored type."""
        unit = self.start if self.rms is None else self.rms
        way = self.rate * moved
        stored = (self.start + unit * way.detach().clamp(-FURTHEST, FURTHEST)).to(self.dtype).float()
        numbers: Tensor = _Stored.apply(unit * way, stored)  # type: ignore[no-untyped-call]
        return numbers

    def right_inverse(self, numbers: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What is trained, where it begins."""
        return torch.zeros_like(numbers)


def moving_(module: nn.Module, name: str, dtype: torch.dtype, rate: float | None = None) -> None:
    """Makes a module's parameter trainable in units; reading it gives what `dtype` stores.

    The unit is the number itself; where a `rate` is given the root mean square, and steps are so many times longer.
    """
    parameter, kind = module.get_parameter(name).requires_grad_(), type(module)
    parametrize.register_parametrization(module, name, Moving(parameter, dtype, rate))
    # torch makes a class for every module. Of one class they share what is compiled: with their own, layers after the
    # eighth would not be compiled at all.
    module.__class__ = _CLASSES.setdefault((kind, name), type(module))


def share_(module: nn.Module, other: nn.Module, name: str) -> None:
    """Makes a parameter of `other` the one of `module`, whose parameter moves."""
    source: Any = module.parametrizations
    shared: Any = parametrize.register_parametrization(other, name, source[name][0]).parametrizations
    shared[name].original = source[name].original
