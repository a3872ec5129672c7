"""Which decoder layers to leave out, and the model without them.

Two scores. ShortGPT's block influence (arXiv 2403.03853) is one minus the mean cosine between the hidden state before
and after a layer, over the tokens of the calibration windows: one run of the model, and blind to what later layers
make of the change. The rise of KL to the whole model when the layer is left out is that measured; layers go one by
one, and what is left is scored again after each.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.progress import Progress, silent
from compress.prune.leave_out import LeaveOut, Removed
from compress.prune.recipe import DepthRecipe, Layers
from compress.quantize.counting import Counted


@dataclass(frozen=True)
class Round:
    """The scores of the layers that could go, or of blocks by their first layer, and which of them went."""

    scores: dict[int, float]
    removed: tuple[int, ...]


def block_influence(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    *,
    counted: Bool[Tensor, "windows length"] | None = None,
    block: int = 1,
    device: str = "cpu",
    batch: int = 8,
    progress: Progress = silent,
) -> list[float]:
    """The influence of each run of `block` decoder layers by its first, 0 for one that only passes its input on."""
    runner = LayerRunner(checkpoint, device, batch)
    before, scores = deque([runner.embed(tokens)], block), []
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        after = runner.run(runner.load(n), before[-1])
        runner.release(n)
        if len(before) == block:
            scores.append(1 - _mean_cosine(before[0], after, counted))
        before.append(after)
    return scores


def _mean_cosine(
    a: Float[Tensor, "windows length hidden"],
    b: Float[Tensor, "windows length hidden"],
    counted: Bool[Tensor, "windows length"] | None,
) -> float:
    cosines = torch.cosine_similarity(a, b, dim=-1)[..., None]
    return float(Counted(counted)(slice(None), cosines).mean())


def least_influential(scores: list[float], count: int, place: str) -> list[int]:
    """The layers to leave out, in their order in the model; at least one must stay."""
    require_layers(count, len(scores), place)
    return sorted(sorted(range(len(scores)), key=lambda n: scores[n])[:count])


def require_layers(removed: Layers, num_layers: int, place: str) -> None:
    """Refuses to leave out what is not there, or all there is."""
    count = removed if isinstance(removed, int) else len(set(removed))
    if count >= num_layers:
        raise CompressError(f"{place}.remove_layers: {count} of {num_layers} layers; leave at least one")
    if not isinstance(removed, int) and max(removed) >= num_layers:
        raise CompressError(f"{place}.remove_layers: no layer {max(removed)}, there are 0 to {num_layers - 1}")


def by_influence(
    checkpoint: Checkpoint,
    tokens: Tensor,
    recipe: DepthRecipe,
    place: str,
    *,
    counted: Tensor | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Round]:
    """One round, all layers scored on the whole model; of contiguous ones, the block that changes its input least."""
    said, num_layers = recipe.remove_layers, checkpoint.config.num_layers
    require_layers(said, num_layers, place)
    block = said if isinstance(said, int) and recipe.contiguous else 1
    scores = block_influence(checkpoint, tokens, counted=counted, block=block, device=device, progress=progress)
    if not isinstance(said, int):
        removed = sorted(set(said))
    elif recipe.contiguous:
        first = min(range(len(scores)), key=lambda n: scores[n])
        removed = list(range(first, first + block))
    else:
        removed = least_influential(scores, said, place)
    return [Round(dict(enumerate(scores)), tuple(removed))]


def by_kl(leave_out: LeaveOut, remove: Layers, place: str, *, contiguous: bool = False) -> list[Round]:
    """Layers one by one, each time the one without which KL is least; or in one round the best run of neighbours."""
    require_layers(remove, leave_out.num_layers, place)
    if not isinstance(remove, int):
        gone = frozenset(remove)
        return [Round({min(gone): leave_out.kl_nats(frozenset(), [gone])[0]}, tuple(sorted(gone)))]
    if contiguous:
        blocks = [frozenset(range(n, n + remove)) for n in range(leave_out.num_layers - remove + 1)]
        return [_round(leave_out, frozenset(), blocks)]
    rounds: list[Round] = []
    for _ in range(remove):
        trunk = frozenset(layers_of(rounds))
        left = [frozenset([n]) for n in range(leave_out.num_layers) if n not in trunk]
        rounds.append(_round(leave_out, trunk, left))
    return rounds


def _round(leave_out: LeaveOut, trunk: Removed, choices: Sequence[Removed]) -> Round:
    scores = leave_out.kl_nats(trunk, choices)
    best = min(range(len(choices)), key=lambda k: scores[k])
    return Round({min(choice): score for choice, score in zip(choices, scores, strict=True)}, tuple(choices[best]))


def layers_of(rounds: Sequence[Round]) -> list[int]:
    """All layers that went, in the model's order."""
    return sorted(n for one in rounds for n in one.removed)


def write_without(checkpoint: Checkpoint, removed: list[int], writer: ModelWriter) -> None:
    """Writes the model without some decoder layers; the others move up and keep their numbers' order."""
    kept = [n for n in range(checkpoint.config.num_layers) if n not in removed]
    for new, old in enumerate(kept):
        tensors = checkpoint.tensors(checkpoint.layer_names(old))
        prefix = f"model.layers.{old}."
        writer.layer(new, {f"model.layers.{new}.{k.removeprefix(prefix)}": t for k, t in tensors.items()})
    writer.outer(checkpoint.tensors(checkpoint.outer_names()))
    writer.close()
