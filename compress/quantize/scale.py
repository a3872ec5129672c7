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
from compress.quantize.workers import ALONE, Workers

# Of a weight, evenly spread, rows on which candidates are compared: their errors are sums over rows. All are compared
# on a few rows, and the best of them once more on many.
FEW_ROWS, MANY_ROWS = 128, 2048
FINALISTS = 4
ENTRIES_AT_ONCE = 2**27  # weights under trial at the same time
SMALLEST = 1e-4  # padded channels have activations of exactly zero; their scale must stay a number
Tie = Callable[[Tensor], Tensor]


def search_scale(
    W: Float[Tensor, "out in_features"],
    statistics: Statistics,
    recipe: AwqRecipe,
    points: int,
    tie: Tie,
    workers: Workers = ALONE,
) -> Float[Tensor, " in_features"]:
    """The s of least output error among |x|^α / |w|^(1−α), α on a grid; `tie` makes channels share one where they must.

    s = 1 is always tried, so the answer is never worse than no scale.
    """
    m, w = statistics.magnitude, _relative_magnitude(W, recipe.group_size)
    exponents = [step / points for step in range(points)]
    candidates = torch.stack([torch.ones_like(m), *(_candidate(m, w, a, tie) for a in exponents)])
    few, many = (workers.share(W[:: -(-len(W) // rows)]) for rows in (FEW_ROWS, MANY_ROWS))
    errors = workers.sum_(_rounding_errors(few, statistics.H, candidates, recipe))
    errors[0] = -torch.inf  # no scale is a finalist in any case
    finalists = candidates[errors.argsort(stable=True)[: 1 + FINALISTS]]
    errors = workers.sum_(_rounding_errors(many, statistics.H, finalists, recipe))
    return finalists[int(errors.argmin())]


def _relative_magnitude(W: Float[Tensor, "out in_features"], group_size: int) -> Float[Tensor, " in_features"]:
    """Each channel's mean |w| as a share of its groups' greatest."""
    groups = W.abs().unflatten(1, (-1, group_size))
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-6)).flatten(1).mean(0)


def _candidate(m: Tensor, w: Tensor, alpha: float, tie: Tie) -> Float[Tensor, " in_features"]:
    s = tie((m.clamp(min=SMALLEST) ** alpha / w.clamp(min=SMALLEST) ** (1 - alpha)).clamp(min=SMALLEST))
    return s / (s.max() * s.min()).sqrt()


def _rounding_errors(
    W: Float[Tensor, "out in_features"],
    H: Tensor,
    candidates: Float[Tensor, "candidates in_features"],
    recipe: AwqRecipe,
) -> Float[Tensor, " candidates"]:
    """The output error of rounding under each candidate, as many at a time as memory allows."""
    at_once = max(1, ENTRIES_AT_ONCE // W.numel())
    return torch.cat([_errors_of(W, H, some, recipe) for some in candidates.split(at_once)])


def _errors_of(W: Tensor, H: Tensor, candidates: Tensor, recipe: AwqRecipe) -> Float[Tensor, " candidates"]:
    scaled = (W * candidates[:, None]).flatten(0, 1)
    delta = nearest(scaled, fit_grid(scaled, recipe.bits, recipe.group_size)).sub_(scaled)
    delta = delta.unflatten(0, (len(candidates), -1)).div_(candidates[:, None])
    return output_error(delta.flatten(0, 1), H).unflatten(0, (len(candidates), -1)).sum(1)
