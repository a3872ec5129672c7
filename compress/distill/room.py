"""What helps where a training finds no room on its device, in the order in which it helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress.distill.losses import AttentionRelation, Hidden
from compress.distill.recipe import DistillRecipe
from compress.errors import CompressError


@contextmanager
def room_to_train(recipe: DistillRecipe) -> Iterator[None]:
    """Wherever memory runs out in here, in the student's backward pass as in the teacher, what helps is said."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CompressError(f"train: the device's memory is full ({_asked(error)}); {_remedy(recipe)}") from error


@contextmanager
def room_for_teacher(recipe: DistillRecipe) -> Iterator[None]:
    """The same while the teacher runs alone, to be cached."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        half = "write precision: bf16, which halves it, or " if recipe.precision == "float32" else ""
        raise CompressError(
            f"teacher: does not fit into the device's memory alone ({_asked(error)}); {half}set TURBOPRESS_DEVICE=cpu"
        ) from error


def _remedy(recipe: DistillRecipe) -> str:
    between_layers = any(isinstance(loss, Hidden | AttentionRelation) for loss in recipe.losses)
    helps = []
    if recipe.cache is None and not between_layers:
        helps.append("cache: hidden (the teacher runs first and alone; {top_k: 64} needs no head of its own either)")
    if recipe.accumulate < recipe.batch:
        helps.append(f"accumulate: {_next_divisor(recipe)} (fewer windows at once)")
    if not recipe.checkpointing:
        helps.append("checkpointing: true (layers are computed twice)")
    if not helps:
        return "nothing in the recipe is left to save; use shorter windows, or several GPUs with FSDP"
    return "write " + ", or ".join(helps)


def _next_divisor(recipe: DistillRecipe) -> int:
    """The next number of passes that the batch divides into."""
    return next(n for n in range(recipe.accumulate + 1, recipe.batch + 1) if recipe.batch % n == 0)


def _asked(error: torch.OutOfMemoryError) -> str:
    """The first sentences of what the allocator says, which name its device and sizes."""
    return ". ".join(str(error).splitlines()[0].split(". ")[:2]).rstrip(".")
