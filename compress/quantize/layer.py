"""Quantizing one decoder layer from the statistics of its inputs: scale, clip, round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from compress.checkpoint.config import ModelConfig
from compress.quantize.clip import search_clip
from compress.quantize.gptq import gptq
from compress.quantize.grid import Grid, dequantize, fit_grid, nearest, quantize
from compress.quantize.recipe import AwqRecipe, Gptq, Nearest
from compress.quantize.scale import search_scale
from compress.quantize.sites import SITES, Site, fold_, joined_weight, tie_for
from compress.quantize.statistics import InputStatistics, output_error


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's codes and grid, and their relative output error (‖Δy‖² / ‖y‖²) beside plain rounding's."""

    q: UInt8[Tensor, "out in_features"]
    grid: Grid
    error: float
    nearest_error: float


def quantize_layer_(
    layer: nn.Module,
    statistics: Mapping[str, InputStatistics],
    config: ModelConfig,
    recipe: AwqRecipe,
    place: str,
) -> dict[str, QuantizedLinear]:
    """Every linear of the layer by name; the layer itself is left with the rounded weights and folded scales."""
    plain = {site.key: _plain_error(joined_weight(layer, site), statistics[site.key].H, recipe) for site in SITES}
    grams = {site.key: _scale_(layer, site, statistics[site.key], config, recipe) for site in SITES}
    _store_producers_as_half_(layer)
    return {
        name: quantized
        for site in SITES
        for name, quantized in _round_site_(layer, site, grams[site.key], recipe, plain[site.key], place)
    }


def _scale_(
    layer: nn.Module, site: Site, statistics: InputStatistics, config: ModelConfig, recipe: AwqRecipe
) -> Float[Tensor, "in_features in_features"]:
    """Folds the site's scales and returns the Gram matrix of its new input."""
    H = statistics.H
    if recipe.scale is None:
        return H
    W, tie = joined_weight(layer, site), tie_for(site, config)
    s = search_scale(W, H, statistics.magnitude, recipe, recipe.scale, tie)
    fold_(layer, site, s, config)
    return H / s / s[:, None]


def _store_producers_as_half_(layer: nn.Module) -> None:
    """Rounds what stays unquantized to the float16 that the artifact will hold, so that later layers see it."""
    for parameter in layer.parameters():
        if parameter.dim() == 1:
            parameter.data.copy_(parameter.data.half().float())


def _plain_error(W: Tensor, H: Tensor, recipe: AwqRecipe) -> Float[Tensor, "2 out"]:
    """Each output's squared error under plain rounding, above its mean square."""
    plain = nearest(W, fit_grid(W, recipe.bits, recipe.group_size))
    return torch.stack([output_error(plain - W, H), output_error(W, H)])


def _round_site_(
    layer: nn.Module, site: Site, H: Tensor, recipe: AwqRecipe, plain: Float[Tensor, "2 out"], place: str
) -> list[tuple[str, QuantizedLinear]]:
    """Codes and grids of a site's linears, whose weights become the numbers that the codes stand for."""
    W = joined_weight(layer, site)
    grid = fit_grid(W, recipe.bits, recipe.group_size)
    if recipe.clip is not None:
        grid = search_clip(W, H, recipe, recipe.clip)
    q = _rounder(recipe, f"{place}.{site.key}")(W, H, grid)
    rounded = dequantize(q, grid)
    ours = torch.stack([output_error(rounded - W, H), output_error(W, H)])
    out, start = [], 0
    for name in site.linears:
        weight = layer.get_parameter(f"{name}.weight")
        rows = slice(start, start := start + weight.shape[0])
        weight.data.copy_(rounded[rows])
        part = Grid(grid.scales[rows], grid.zeros[rows], grid.bits, grid.group_size)
        out.append((name, QuantizedLinear(q[rows], part, _share(ours[:, rows]), _share(plain[:, rows]))))
    return out


def _share(error_and_power: Float[Tensor, "2 out"]) -> float:
    error, power = error_and_power.sum(1)
    return float(error / power.clamp(min=torch.finfo(torch.float32).tiny))


def _rounder(recipe: AwqRecipe, place: str) -> Callable[[Tensor, Tensor, Grid], Tensor]:
    match recipe.rounding:
        case Nearest():
            return lambda W, _, grid: quantize(W, grid)
        case Gptq(damping=damping):
            return lambda W, H, grid: gptq(W, H, grid, damping, place)
