"""AWQ's activation-aware scales, chosen from a Gram matrix (arXiv 2306.00978, §3.2) instead of by running the layer.

Channels that carry large activations get more of the grid: their weights are multiplied by s before rounding and
whatever produces them is divided by s, which changes nothing but the rounding error.
"""

# W (out, in) weight · H (in, in) Gram · m (in,) mean |x| · s (in,) scale

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from compress.quantize.grid import fit_grid, nearest
from compress.quantize.recipe import AwqRecipe
from compress.quantize.statistics import Statistics, output_error

SMALLEST = 1e-4  # padded channels have activations of exactly zero; their scale must stay a number
Tie = Callable[[Tensor], Tensor]


def search_scale(
    W: Float[Tensor, "out in_features"], statistics: Statistics, recipe: AwqRecipe, tie: Tie
) -> Float[Tensor, " in_features"]:
    """The s of least output error among |x|^α / |w|^(1−α), α on a grid; `tie` makes channels share one where they must.

    s = 1 is always tried, so the answer is never worse than no scale.
    """
    assert recipe.scale is not None
    m, w = statistics.magnitude, _relative_magnitude(W, recipe.group_size)
    exponents = [step / recipe.scale.points for step in range(recipe.scale.points)]
    candidates = [torch.ones_like(m), *(_candidate(m, w, a, tie) for a in exponents)]
    errors = [_rounding_error(W, statistics.H, s, recipe) for s in candidates]
    return candidates[int(torch.stack(errors).argmin())]


def _relative_magnitude(W: Float[Tensor, "out in_features"], group_size: int) -> Float[Tensor, " in_features"]:
    """Each channel's mean |w| as a share of its groups' greatest."""
    groups = W.abs().unflatten(1, (-1, group_size))
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-6)).flatten(1).mean(0)


def _candidate(m: Tensor, w: Tensor, alpha: float, tie: Tie) -> Float[Tensor, " in_features"]:
    s = tie((m.clamp(min=SMALLEST) ** alpha / w.clamp(min=SMALLEST) ** (1 - alpha)).clamp(min=SMALLEST))
    return s / (s.max() * s.min()).sqrt()


def _rounding_error(W: Tensor, H: Tensor, s: Tensor, recipe: AwqRecipe) -> Float[Tensor, ""]:
    scaled = W * s
    return output_error((nearest(scaled, fit_grid(scaled, recipe.bits, recipe.group_size)) - scaled) / s, H).sum()
