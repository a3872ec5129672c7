"""A linear that computes with what 4 bits store while it is trained: codes in a byte each, or latents rounded to them.

The weight is made from codes, zeros and scales in the forward pass and made again in the backward pass, so a step keeps
no float weight; the gradient of the weight is summed over each group for its scale. Rounding, of scales to the stored
type and of latents to codes, passes gradients as if it were not there (LSQ, arXiv 1902.08153), so that what is measured
in training is what is written.
"""

# q, z, s codes (out, in), zeros and scales (out, groups) · v latent, in steps off where a code began, over its gain
# g (tokens, out) gradient of the outputs · G (out, groups, group_size) of the weight, by groups

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from compress.distill.moving import moving_
from compress.distill.repair import Codes, Repair
from compress.quantize.grid import Grid

EDGE = 0.499  # of a step: a latent further beyond the last code is not pushed on


class _Product(torch.autograd.Function):
    """x Wᵀ with W = (q − z) · s; gradients reach x, s and the latents whose codes are q."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, z: Tensor, s: Tensor, v: Tensor | None, gain: float) -> Tensor:
        ctx.save_for_backward(x, q, z, s)
        ctx.gain = gain
        return x @ _weight(q, z, s, x.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor | None, None]:
        x, q, z, s = ctx.saved_tensors
        grad_x = g @ _weight(q, z, s, g.dtype) if ctx.needs_input_grad[0] else None
        G = (g.flatten(0, -2).t() @ x.flatten(0, -2)).float().unflatten(1, (s.shape[1], -1))
        grad_s = (G * _steps(q, z)).sum(-1)
        grad_v = G.mul_(s[..., None] * ctx.gain).flatten(1) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_s, grad_v, None


def _steps(q: Tensor, z: Tensor) -> Float[Tensor, "out groups group_size"]:
    """How many steps each weight is from zero."""
    return q.unflatten(1, (z.shape[1], -1)).float().sub_(z[..., None])


def _weight(q: Tensor, z: Tensor, s: Tensor, dtype: torch.dtype) -> Float[Tensor, "out in_features"]:
    return _steps(q, z).mul_(s[..., None]).flatten(1).to(dtype)


class FakeLinear(nn.Module):
    """A 4-bit linear in training. `scales` is a parameter of this module, read as it is stored."""

    start: Tensor
    zeros: Tensor
    bias: Tensor | None
    latents: nn.Parameter | None

    def __init__(
        self, q: UInt8[Tensor, "out in_features"], grid: Grid, dtype: torch.dtype, bias: Tensor | None, train: Repair
    ) -> None:
        super().__init__()
        self.bits, self.group_size = grid.bits, grid.group_size
        self.register_buffer("start", q)
        self.register_buffer("zeros", grid.zeros)
        self.register_buffer("bias", None if bias is None else bias.float())
        self.scales = nn.Parameter(grid.scales)
        moving_(self, "scales", dtype)
        self.gain = train.rate if isinstance(train, Codes) else 0.0
        self.latents = nn.Parameter(torch.zeros(q.shape)) if isinstance(train, Codes) else None

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out"]:
        """The linear's output in the type of its inputs, or in autocast's."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        s, v = self.scales, self.latents
        y: Tensor = _Product.apply(x, self.codes(), self.zeros, s, v, self.gain)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def codes(self) -> UInt8[Tensor, "out in_features"]:
        """The codes that would be stored now."""
        if self.latents is None:
            return self.start
        top = 2**self.bits - 1
        exact = self.latents.data.mul(self.gain).add_(self.start)
        return exact.round_().clamp_(0, top).to(torch.uint8)

    @torch.no_grad()
    def grid(self) -> Grid:
        """Scales as they would be stored now, and the zeros."""
        return Grid(self.scales.detach().clone(), self.zeros, self.bits, self.group_size)
