"""Leaving decoder layers out, those first that change their input least (ShortGPT's block influence, arXiv 2403.03853).

The influence of a layer is one minus the mean cosine between the hidden state before and after it, over the tokens of
the calibration windows. The scores are taken once, on the whole model.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.progress import Progress, silent


def block_influence(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    *,
    counted: Bool[Tensor, "windows length"] | None = None,
    device: str = "cpu",
    batch: int = 8,
    progress: Progress = silent,
) -> list[float]:
    """The influence of each decoder layer, 0 for one that only passes its input on, over the tokens that count."""
    runner = LayerRunner(checkpoint, device, batch)
    hidden, scores = runner.embed(tokens), []
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        after = runner.run(runner.load(n), hidden)
        runner.release(n)
        scores.append(1 - _mean_cosine(hidden, after, counted))
        hidden = after
    return scores


def _mean_cosine(
    a: Float[Tensor, "windows length hidden"],
    b: Float[Tensor, "windows length hidden"],
    counted: Bool[Tensor, "windows length"] | None,
) -> float:
    cosines = torch.cosine_similarity(a.flatten(0, 1), b.flatten(0, 1))
    return float((cosines if counted is None else cosines[counted.flatten()]).mean())


def least_influential(scores: list[float], count: int, place: str) -> list[int]:
    """The layers to leave out, in their order in the model; at least one must stay."""
    if count >= len(scores):
        raise CompressError(f"{place}.remove_layers: {count} of {len(scores)} layers; leave at least one")
    return sorted(sorted(range(len(scores)), key=lambda n: scores[n])[:count])


def write_without(checkpoint: Checkpoint, removed: list[int], writer: ModelWriter) -> None:
    """Writes the model without some decoder layers; the others move up and keep their numbers' order."""
    kept = [n for n in range(checkpoint.config.num_layers) if n not in removed]
    for new, old in enumerate(kept):
        tensors = checkpoint.tensors(checkpoint.layer_names(old))
        prefix = f"model.layers.{old}."
        writer.layer(new, {f"model.layers.{new}.{k.removeprefix(prefix)}": t for k, t in tensors.items()})
    writer.outer(checkpoint.tensors(checkpoint.outer_names()))
    writer.close()
