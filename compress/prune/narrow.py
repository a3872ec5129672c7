"""Which channels of the residual stream stay: one set for the whole model, chosen on the whole model.

A channel is worth what its readers lose without it: every set of linears behind a norm, and the output head. By Gram
matrices that is the error its loss leaves after the other channels have made it good, as a share of the reader's
output; by activations (Minitron, arXiv 2407.14679) the mean magnitude behind the norm.
"""

# h residual stream, x behind the norm

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.hidden import HiddenStates
from compress.checkpoint.runner import LayerRunner
from compress.explain.head import Head
from compress.progress import Progress, silent
from compress.prune.least_squares import heard, inverse, removal_errors
from compress.quantize.counting import Counted
from compress.quantize.resources import Resources
from compress.quantize.sites import SITES, joined_weight
from compress.quantize.statistics import Accumulator, Statistics
from compress.quantize.stream import FLOATS, Stream


@torch.no_grad()
def channel_scores(
    checkpoint: Checkpoint,
    tokens: Tensor,
    importance: str,
    resources: Resources,
    counted: Counted,
    progress: Progress = silent,
) -> Float[Tensor, " hidden"]:
    """What each channel of the residual stream is worth, the sum over its readers; one run of the whole model."""
    runner = LayerRunner(checkpoint, resources.device, resources.batch, resources.dtype, prefetch=resources.prefetch)
    hidden = resources.room((*tokens.shape, runner.hidden_size))
    runner.embed_(hidden, tokens)
    stream = Stream(runner, hidden)
    total = torch.zeros(runner.hidden_size, device=resources.device)
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        layer = runner.load(n)
        for site, step in zip(SITES, FLOATS, strict=True):
            accumulator = Accumulator()
            for at, (_, x) in zip(hidden.slices(), stream.through(layer, step), strict=True):
                if not site.writes_residual:
                    accumulator.add(counted(at, x))
            if not site.writes_residual:
                W = joined_weight(layer, site)
                total += _worth(W, accumulator.means(), importance, f"layers.{n}.{site.key}")
        runner.release(n)
    head = Head(checkpoint, resources.device)
    return total + _worth(head.W, _behind_norm(head, hidden, counted), importance, "lm_head")


def _behind_norm(head: Head, hidden: HiddenStates, counted: Counted) -> Statistics:
    accumulator = Accumulator()
    for at, h in hidden.batches():
        accumulator.add(counted(at, head.normed(h.float()).view(*h.shape)))
    return accumulator.means()


def _worth(W: Tensor, statistics: Statistics, importance: str, place: str) -> Float[Tensor, " hidden"]:
    if importance == "activation":
        return statistics.magnitude / statistics.magnitude.mean()
    H = statistics.H
    power = ((W @ H) * W).sum()
    return removal_errors(heard(W, H), inverse(H, place), torch.arange(len(H), device=H.device)[:, None]) / power


def most_worth(scores: Float[Tensor, " hidden"], keep: int) -> Int64[Tensor, " keep"]:
    """The channels that stay, in order."""
    return scores.argsort(descending=True, stable=True)[:keep].sort().values
