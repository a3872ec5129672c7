"""Quantizing one decoder layer, a set of linears after the other: measure, scale, aim, clip, round.

Two models go through the layer side by side, the float one and the one rounded so far. Each set of linears is measured
on what the linears just rounded really give it, and may make good what they did.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from compress.checkpoint.config import ModelConfig
from compress.quantize.clip import search_clip
from compress.quantize.feedback import aimed
from compress.quantize.gptq import damped, gptq
from compress.quantize.grid import Grid, dequantize, fit_grid, nearest, quantize
from compress.quantize.recipe import AwqRecipe, Gptq, Nearest
from compress.quantize.refine import refine
from compress.quantize.scale import search_scale
from compress.quantize.sites import SITES, Site, divide_producer_, joined_weight, set_joined_weight_, tie_for
from compress.quantize.statistics import Accumulator, Statistics, output_error
from compress.quantize.stream import STEPS, Stream


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's codes and grid, and their relative output error (‖Δy‖² / ‖y‖²) beside plain rounding's."""

    q: UInt8[Tensor, "out in_features"]
    grid: Grid
    error: float
    nearest_error: float


@dataclass
class Walkers:
    """The windows in the float model and in the rounded one."""

    floats: Stream
    rounded: Stream

    def measure(self, site: Site) -> Statistics:
        """What the site's linears see, in both models."""
        accumulator, batch, device = Accumulator(), self.rounded.runner.batch, self.rounded.runner.device
        streams = (self.rounded.x, self.floats.x, self.rounded.h, self.floats.h)
        for parts in zip(*(t.split(batch) for t in streams), strict=True):
            x, x_float, h, h_float = (part.to(device) for part in parts)
            accumulator.add(x, x_float, h_float - h if site.writes_residual else None)
        return accumulator.means()


def quantize_layer_(
    layer: nn.Module, walkers: Walkers, config: ModelConfig, recipe: AwqRecipe, place: str
) -> dict[str, QuantizedLinear]:
    """Every linear of the layer by name; the layer is left rounded and folded, the walkers stand behind it."""
    original = copy.deepcopy(layer)
    linears: dict[str, QuantizedLinear] = {}
    for site, step in zip(SITES, STEPS, strict=True):
        walkers.floats.advance_(original, step)
        walkers.rounded.advance_(layer, step)
        statistics = walkers.measure(site)
        plain_error = _plain_error(joined_weight(layer, site), statistics.H, recipe)
        if recipe.scale is not None:
            s = search_scale(joined_weight(layer, site), statistics, recipe, tie_for(site, config))
            _fold_(layer, site, s, config, linears)
            walkers.rounded.x /= s.cpu()
            statistics = statistics.scaled(s)
        linears |= _round_(layer, site, statistics, recipe, plain_error, f"{place}.{site.key}")
    walkers.floats.leave_(original)
    walkers.rounded.leave_(layer)
    return linears


def _fold_(layer: nn.Module, site: Site, s: Tensor, config: ModelConfig, linears: dict[str, QuantizedLinear]) -> None:
    """Multiplies the site's columns by s and divides what produces its input, a norm or rows rounded already, by it.

    A rounded row divided by a number keeps its codes: its scales are divided.
    """
    set_joined_weight_(layer, site, joined_weight(layer, site) * s)
    divisor = divide_producer_(layer, site, s, config)
    if site.producer in linears:
        made = linears[site.producer]
        grid = Grid((made.grid.scales / divisor[:, None]).half().float(), *made.grid.rest)
        linears[site.producer] = QuantizedLinear(made.q, grid, made.error, made.nearest_error)


def _plain_error(W: Tensor, H: Tensor, recipe: AwqRecipe) -> Float[Tensor, "2 out"]:
    """Each output's squared error under plain rounding, above its mean square."""
    plain = nearest(W, fit_grid(W, recipe.bits, recipe.group_size))
    return torch.stack([output_error(plain - W, H), output_error(W, H)])


def _round_(
    layer: nn.Module, site: Site, statistics: Statistics, recipe: AwqRecipe, plain: Float[Tensor, "2 out"], place: str
) -> dict[str, QuantizedLinear]:
    """Codes and grids of a site's linears, whose weights become the numbers that the codes stand for."""
    W, H = joined_weight(layer, site), statistics.H
    if recipe.feedback is not None:
        W = aimed(W, statistics, recipe.feedback)
    grid = fit_grid(W, recipe.bits, recipe.group_size)
    if recipe.clip is not None:
        grid = search_clip(W, H, recipe, recipe.clip)
    q, grid = _rounder(recipe, place)(W, H, grid)
    rounded = dequantize(q, grid)
    set_joined_weight_(layer, site, rounded)
    ours = torch.stack([output_error(rounded - W, H), output_error(W, H)])
    return {
        name: QuantizedLinear(q[rows], grid.rows(rows), _share(ours[:, rows]), _share(plain[:, rows]))
        for name, rows in site.rows(layer).items()
    }


def _share(error_and_power: Float[Tensor, "2 out"]) -> float:
    error, power = error_and_power.sum(1)
    return float(error / power.clamp(min=torch.finfo(torch.float32).tiny))


def _rounder(recipe: AwqRecipe, place: str) -> Callable[[Tensor, Tensor, Grid], tuple[Tensor, Grid]]:
    match recipe.rounding:
        case Nearest():
            return lambda W, _, grid: (quantize(W, grid), grid)
        case Gptq(damping=damping, refine=rounds):

            def compensate(W: Tensor, H: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
                H = damped(H, damping)
                return refine(W, H, gptq(W, H, grid, place), grid, rounds)

            return compensate
