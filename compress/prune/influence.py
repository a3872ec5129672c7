"""ShortGPT's block influence (arXiv 2403.03853): one minus the mean cosine between the hidden state before and after.

One run of the model, whatever its depth: a layer and a batch lie on the device. A run of several layers is held
against what went into its first, so as many copies of the windows wait as the run has layers, on the host or on disk.
"""

import math
from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.hidden import HiddenStates
from compress.checkpoint.runner import LayerRunner
from compress.progress import Progress, silent
from compress.prune.overflow import out_of_range
from compress.quantize.counting import Counted
from compress.quantize.resources import Resources
from compress.quantize.stream import WHOLE_LAYER, compute

ON_CPU = Resources()


@torch.no_grad()
def block_influence(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    *,
    counted: Bool[Tensor, "windows length"] | None = None,
    block: int = 1,
    resources: Resources = ON_CPU,
    progress: Progress = silent,
) -> list[float]:
    """The influence of each run of `block` decoder layers by its first, 0 for one that only passes its input on."""
    runner = LayerRunner(checkpoint, resources.device, resources.batch, resources.dtype, prefetch=resources.prefetch)
    shape = (*tokens.shape, runner.hidden_size)
    inputs, scores = deque([resources.room(shape)]), list[float]()  # of the last layers, the next one's at the end
    runner.embed_(inputs[-1], tokens)
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        here, layer = inputs[-1], runner.load(n)
        if len(inputs) < block:
            inputs.append(resources.room(shape))
            for at, after in _outputs(runner, layer, here):
                inputs[-1].put_(at, after)
        else:
            eldest = inputs.popleft()
            scores.append(1 - _mean_cosine_(eldest, _outputs(runner, layer, here), Counted(counted), f"layers.{n}"))
            inputs.append(eldest)
        runner.release(n)
    return scores


def _outputs(runner: LayerRunner, layer: nn.Module, here: HiddenStates) -> Iterator[tuple[slice, Tensor]]:
    for at, h in here.batches():
        yield at, compute(layer, h, runner.rope(h), *WHOLE_LAYER)


def _mean_cosine_(before: HiddenStates, after: Iterator[tuple[slice, Tensor]], counted: Counted, place: str) -> float:
    """Over the tokens that count; afterwards the windows stand where `after` says."""
    cosines = []
    for (_, h), (at, h_after) in zip(before.batches(), after, strict=True):
        found = torch.cosine_similarity(h.float(), h_after.float(), dim=-1)
        cosines.append(counted(at, found[..., None]))
        before.put_(at, h_after)
    mean = float(torch.cat(cosines).mean())
    if not math.isfinite(mean):
        raise out_of_range(place, h.dtype)
    return mean
