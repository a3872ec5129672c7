"""Which decoder layers to leave out, and the model without them.

Two scores. Block influence is one run of the model, and blind to what later layers make of the change. The rise of KL
to the whole model when the layer is left out is that measured; layers go one by one, and what is left is scored again
after each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.progress import Progress, silent
from compress.prune.influence import ON_CPU, block_influence
from compress.prune.leave_out import LeaveOut, Removed
from compress.prune.recipe import DepthRecipe, Layers
from compress.prune.text import Text
from compress.quantize.resources import Resources


@dataclass(frozen=True)
class Round:
    """The scores of what could go, a layer or several at once, and which layers went."""

    scores: dict[tuple[int, ...], float]
    removed: tuple[int, ...]


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
    text: Text,
    recipe: DepthRecipe,
    place: str,
    *,
    resources: Resources = ON_CPU,
    progress: Progress = silent,
) -> list[Round]:
    """One round, all layers scored on the whole model; of contiguous ones, the block that changes its input least."""
    said, num_layers = recipe.remove_layers, checkpoint.config.num_layers
    require_layers(said, num_layers, place)
    scores = block_influence(
        checkpoint, text.tokens, counted=text.counted, block=recipe.run, resources=resources, progress=progress
    )
    if not isinstance(said, int):
        removed = sorted(set(said))
    elif recipe.contiguous:
        first = min(range(len(scores)), key=lambda n: scores[n])
        removed = list(range(first, first + said))
    else:
        removed = least_influential(scores, said, place)
    return [Round({tuple(range(n, n + recipe.run)): score for n, score in enumerate(scores)}, tuple(removed))]


def by_kl(leave_out: LeaveOut, remove: Layers, place: str, *, contiguous: bool = False) -> list[Round]:
    """Layers one by one, each time the one without which KL is least; or in one round the best run of neighbours."""
    require_layers(remove, leave_out.num_layers, place)
    if not isinstance(remove, int):
        return [_round(leave_out, frozenset(), [frozenset(remove)])]
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
    by_choice = {tuple(sorted(choice)): score for choice, score in zip(choices, scores, strict=True)}
    return Round(by_choice, min(by_choice, key=lambda choice: by_choice[choice]))


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
