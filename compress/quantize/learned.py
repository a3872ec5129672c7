"""Codes and scales of a decoder layer trained together against what the float model has there.

Rounding column by column minimizes each set of linears' own output error. What counts is the output of the layer, where
the errors of its linears meet. Here every code has a latent value that rounds to it; latents and scales move by the
sign of the gradient of the layer's output error (SignRound, arXiv 2309.05516), starting where error compensation ended.
The step with the least error on windows that were not trained on is kept, so the start is never made worse there.
"""

# u (out, in) latents, q = round(u) codes · s, z (out, groups) scale and zero · a (out, groups) factor of the scale

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from compress.quantize.grid import SMALLEST_SCALE, Grid
from compress.quantize.recipe import Learned
from compress.quantize.stepper import Lesson, Stepper
from compress.quantize.workers import Workers

LOOKS = 8  # at the held-out windows, spread over the steps
EDGE = 0.499  # of a step: further out a latent belongs to the next code
FURTHEST = 2.0  # a scale moves by this factor at most
GRADIENT = 2.0**-6  # root mean square of the gradient of the outputs, in the middle of float16's range


def _stored(scales: Tensor) -> Tensor:
    return scales.half().float().clamp_(min=SMALLEST_SCALE)


@dataclass
class Latent:
    """What is trained of one linear."""

    u: Float[Tensor, "out in_features"]
    a: Float[Tensor, "out groups"]
    grid: Grid

    @classmethod
    def start(cls, q: UInt8[Tensor, "out in_features"], lean: Float[Tensor, "out in_features"], grid: Grid) -> "Latent":
        """Latents that round to q, each on the side where its own best value lies."""
        u = lean.float().nan_to_num_().clamp_(-EDGE, EDGE).add_(q)
        return cls(u, torch.ones_like(grid.scales), grid)

    @torch.no_grad()
    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in_features"]:
        """What the linear computes with."""
        return self._steps().mul_(_stored(self.grid.scales * self.a)[..., None]).flatten(1).to(dtype)

    @torch.no_grad()
    def move_(self, gradient: Float[Tensor, "out in_features"], rate: Tensor, scale_rate: Tensor) -> None:
        """One signed step against the gradient of the weight, which rounding passes as if it were not there."""
        gradient = gradient.nan_to_num_()
        along = (gradient.unflatten(1, (self.a.shape[1], -1)) * self._steps().to(gradient.dtype)).sum(-1)
        self.a.sub_(along.float().sign_().mul_(scale_rate)).clamp_(1 / FURTHEST, FURTHEST)
        self.u.sub_(gradient.sign_().mul_(rate)).clamp_(-EDGE, self.grid.top + EDGE)

    def _steps(self) -> Float[Tensor, "out groups {self.grid.group_size}"]:
        """How many steps each weight is from zero."""
        groups = self.u.round().clamp_(0, self.grid.top).unflatten(1, (self.a.shape[1], -1))
        return groups.sub_(self.grid.zeros[..., None])

    @torch.no_grad()
    def codes(self) -> tuple[UInt8[Tensor, "out in_features"], Grid]:
        """Codes and grid as they are stored."""
        grid = Grid(_stored(self.grid.scales * self.a), *self.grid.rest)
        return self.u.round().clamp_(0, grid.top).to(torch.uint8), grid


@dataclass(frozen=True)
class Learning:
    """Codes and grids of the best step, and the layer's relative output error at the start and there."""

    linears: dict[str, tuple[UInt8[Tensor, "out in_features"], Grid]]
    start_error: float
    error: float


def learn(
    layer: nn.Module,
    latents: Mapping[str, Latent],
    lesson: Lesson,
    rope: tuple[Tensor, Tensor],
    recipe: Learned,
    seed: int,
    workers: Workers,
) -> Learning:
    """Trains the latents on all windows but the last, which choose the step: half of them at the most.

    `layer` is not modified.
    """
    split = len(lesson) - min(recipe.held_out, len(lesson) // 2)
    held_out = lesson[slice(split, None)]
    stepper = Stepper(layer, latents, rope, recipe, workers, lesson)
    power = stepper.power(held_out)
    draws = torch.Generator().manual_seed(seed)
    first = error = best = stepper.error(held_out) / power
    kept = {name: latent.codes() for name, latent in latents.items()}
    stepper.normalize_(GRADIENT, first * power)
    share = max(1, recipe.batch // workers.count)
    for step in range(1, recipe.steps + 1):
        chosen = torch.randperm(split, generator=draws)[:share]
        stepper.step_(lesson, chosen.tolist(), 1 - (step - 1) / recipe.steps)
        if step % max(1, recipe.steps // LOOKS) == 0 or step == recipe.steps:
            error = stepper.error(held_out) / power
            if error < best:
                best, kept = error, {name: latent.codes() for name, latent in latents.items()}
    return Learning(kept, first, best)
