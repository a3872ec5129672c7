"""Quantizing one decoder layer, a set of linears after the other: measure, scale, aim, clip, round.

Two models go through the layer side by side, the float one and the one rounded so far. Each set of linears is measured
on what the linears just rounded really give it, and may make good what they did.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from compress.checkpoint.config import ModelConfig
from compress.errors import CompressError
from compress.quantize.clip import search_clip
from compress.quantize.counting import Counted
from compress.quantize.factor import damp_, factorize
from compress.quantize.feedback import aimed
from compress.quantize.gptq import gptq
from compress.quantize.grid import Grid, dequantize, fit_grid, nearest, quantize
from compress.quantize.recipe import AwqRecipe, Learned, Nearest
from compress.quantize.refine import leans, refine
from compress.quantize.scale import search_scale
from compress.quantize.sites import LINEARS, SITES, Site, joined_weight, producer_divisor, tie_for
from compress.quantize.statistics import Accumulator, Statistics, output_error
from compress.quantize.stream import FLOATS, ROUNDED, Stream
from compress.quantize.workers import Workers


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's codes and grid, and their relative output error (‖Δy‖² / ‖y‖²) beside plain rounding's."""

    q: UInt8[Tensor, "out in_features"]
    grid: Grid
    error: float
    nearest_error: float
    lean: Float[Tensor, "out in_features"] | None = None  # refine.leans, where learning goes on from here


@dataclass(frozen=True)
class LayerQuantizer:
    """Rounds layers by one recipe; `floats` is the float model beside the rounded one, where feedback wants it."""

    recipe: AwqRecipe
    config: ModelConfig
    workers: Workers
    rounded: Stream
    floats: Stream | None
    counted: Bool[Tensor, "windows length"] | None = None  # tokens that statistics are of; all where it is None

    def round_(
        self, layer: nn.Module, original: nn.Module, kept: frozenset[str], place: str
    ) -> dict[str, QuantizedLinear]:
        """Every linear of `layer` by name, those that are `kept` in 16 bits with no error.

        The layer becomes what they stand for, or keeps its weights; the windows stand behind its o.
        """
        linears: dict[str, QuantizedLinear] = {}
        as_stored_(layer)
        for number, site in enumerate(SITES):
            statistics = self._measure(layer, original, number, f"{place}.{site.key}")
            W = joined_weight(original, site)
            plain = self._plain_error(W, statistics.H)
            if self.recipe.scale is not None:
                tie = tie_for(site, self.config)
                s = search_scale(W, statistics, self.recipe, self.recipe.scale.points, tie, self.workers)
                W.mul_(s)
                statistics.scale_(s)
                in_codes = {name: linear for name, linear in linears.items() if name not in kept}
                linears |= fold_(layer, site, producer_divisor(site, s, self.config), in_codes)
            q, grid, ours, lean = self._round(W, statistics, f"{place}.{site.key}")
            for name, rows in site.rows(layer).items():
                errors = 0.0 if name in kept else _share(ours[:, rows]), _share(plain[:, rows])
                made = QuantizedLinear(q[rows], grid.rows(rows), *errors, lean[rows] if self._learns else None)
                if name in kept:
                    layer.get_parameter(f"{name}.weight").data.copy_(W[rows].half())
                else:
                    set_weight_(layer, name, made)
                linears[name] = made
        return linears

    @property
    def _learns(self) -> bool:
        return isinstance(self.recipe.rounding, Learned)

    def _measure(self, layer: nn.Module, original: nn.Module, number: int, place: str) -> Statistics:
        """What the linears of a site see, in both models."""
        accumulator, rounded = Accumulator(small=True), self.rounded.through(layer, ROUNDED[number])
        counted, slices = Counted(self.counted), self.rounded.hidden.slices()
        if self.floats is None:
            for at, (_, x) in zip(slices, rounded, strict=True):
                accumulator.add(counted(at, x))
        else:
            floats = self.floats.through(original, FLOATS[number])
            for at, (h, x), (h_float, x_float) in zip(slices, rounded, floats, strict=True):
                drift = counted(at, h_float - h) if SITES[number].writes_residual else None
                accumulator.add(counted(at, x), counted(at, x_float), drift)
        statistics = accumulator.means(self.workers)
        if not torch.isfinite(statistics.H.diagonal()).all():
            reach = f"activations leave the range of {self.rounded.runner.dtype}"
            raise CompressError(f"{place}: {reach}; this model cannot be served in float16")
        return statistics

    def _plain_error(self, W: Tensor, H: Tensor) -> Float[Tensor, "2 out"]:
        """Each output's squared error under plain rounding, above its mean square."""
        mine = self.workers.share(W)
        plain = nearest(mine, fit_grid(mine, self.recipe.bits, self.recipe.group_size))
        error = torch.stack([output_error(plain - mine, H), output_error(mine, H)], 1)
        return self.workers.gather(error, len(W)).t()

    def _round(self, W: Tensor, statistics: Statistics, place: str) -> tuple[Tensor, Grid, Tensor, Tensor]:
        """Codes, grid, error (2, out) and lean, which is empty where nothing is learned, of a joined weight.

        This process's rows are worked on here, all rows come back.
        """
        H, rows = statistics.H, len(W)
        W = self.workers.share(W)
        with _damped(H, self.recipe.damping):
            W, q, grid = self._codes(W, statistics, place)
            lean = leans(W, H, q, grid).half() if self._learns else W[:, :0]
        error = torch.stack([output_error(dequantize(q, grid) - W, H), output_error(W, H)], 1)
        parts = (q, grid.scales, grid.zeros, error, lean)
        q, scales, zeros, error, lean = (self.workers.gather(part, rows) for part in parts)
        return q, Grid(scales, zeros, *grid.rest[1:]), error.t(), lean

    def _codes(self, W: Tensor, statistics: Statistics, place: str) -> tuple[Tensor, Tensor, Grid]:
        """What some rows aim at, their codes and grid; H is damped, and D and R are let go of when they are read."""
        recipe, H = self.recipe, statistics.H
        needed = recipe.feedback is not None or not isinstance(recipe.rounding, Nearest)
        factor = factorize(H, place) if needed else None
        if recipe.feedback is not None and factor is not None and statistics.D is not None:
            R = None if statistics.R is None else self.workers.share(statistics.R)
            W = aimed(W, statistics.D, R, factor, recipe.feedback.share)
        statistics.D = statistics.R = R = None  # the largest things here
        grid = fit_grid(W, recipe.bits, recipe.group_size)
        if recipe.clip is not None:
            grid = search_clip(W, H, recipe.bits, recipe.group_size, recipe.clip)
        if isinstance(recipe.rounding, Nearest) or factor is None:
            return W, quantize(W, grid), grid
        q = gptq(W, factor, grid)
        del factor
        return W, *refine(W, H, q, grid, recipe.rounding.refine)


def fold_(
    layer: nn.Module, site: Site, divisor: Tensor, rounded: dict[str, QuantizedLinear]
) -> dict[str, QuantizedLinear]:
    """Divides what produces the site's input: a norm, rows in 16 bits, or rows rounded already, which it returns.

    A rounded row divided by a number keeps its codes: its scales are divided.
    """
    for name, parameter in layer.get_submodule(site.producer).named_parameters():
        if site.producer not in rounded or name == "bias":
            by = divisor if parameter.dim() == 1 else divisor[:, None]
            parameter.data.copy_((parameter.data.float() / by).half())
    if site.producer not in rounded:
        return {}
    made = rounded[site.producer]
    grid = Grid((made.grid.scales / divisor[:, None]).half().float(), *made.grid.rest)
    divided = replace(made, grid=grid)
    set_weight_(layer, site.producer, divided)
    return {site.producer: divided}


def set_weight_(layer: nn.Module, name: str, made: QuantizedLinear) -> None:
    """Makes a linear's weight what its codes stand for."""
    layer.get_parameter(f"{name}.weight").data.copy_(dequantize(made.q, made.grid))


def as_stored_(layer: nn.Module) -> None:
    """Rounds what stays in 16 bits to what the file will hold, so that the layer is the one that is served."""
    for name, parameter in layer.named_parameters():
        if name.removesuffix(".weight") not in LINEARS:
            parameter.data.copy_(parameter.data.half())


@contextmanager
def _damped(H: Tensor, damping: float) -> Iterator[None]:
    """While this is open, H is damped in place."""
    diagonal = H.diagonal().clone()
    damp_(H, damping)
    try:
        yield
    finally:
        H.diagonal().copy_(diagonal)


def _share(error_and_power: Float[Tensor, "2 out"]) -> float:
    error, power = error_and_power.sum(1)
    return float(error / power.clamp(min=torch.finfo(torch.float32).tiny))
