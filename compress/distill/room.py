"""What helps where a training finds no room on its device, in the order in which it helps."""

from contextlib import AbstractContextManager

from compress.distill.losses import TopKKl
from compress.distill.recipe import DistillRecipe, TopK
from compress.room import room


def room_to_train(recipe: DistillRecipe) -> AbstractContextManager[None]:
    """Wherever memory runs out in here, in the student's backward pass as in the teacher, what helps is said."""
    return room("train", _remedy(recipe))


def room_for_teacher(recipe: DistillRecipe) -> AbstractContextManager[None]:
    """The same while the teacher runs alone, to be cached."""
    half = "write precision: bf16, which halves it, or " if recipe.precision == "float32" else ""
    return room("teacher", f"{half}set TURBOPRESS_DEVICE=cpu", "does not fit into the device's memory alone")


def _remedy(recipe: DistillRecipe) -> str:
    helps = []
    if recipe.cache is None and recipe.accepts("hidden"):
        helps.append(f"cache: hidden (the teacher runs first and alone{_smaller(recipe)})")
    if recipe.accumulate < recipe.batch:
        helps.append(f"accumulate: {_next_divisor(recipe)} (fewer windows at once)")
    if not recipe.checkpointing:
        helps.append("checkpointing: true (layers are computed twice)")
    if not helps:
        return "nothing in the recipe is left to save; use shorter windows, or several GPUs with FSDP"
    return "write " + ", or ".join(helps)


def _smaller(recipe: DistillRecipe) -> str:
    """The other cache, which leaves the device to the student entirely, where the losses are content with it."""
    least = TopK(top_k=max((loss.k for loss in recipe.losses if isinstance(loss, TopKKl)), default=1))
    return f"; {{top_k: {least.top_k}}} needs no head of its own either" if recipe.accepts(least) else ""


def _next_divisor(recipe: DistillRecipe) -> int:
    """The next number of passes that the batch divides into."""
    return next(n for n in range(recipe.accumulate + 1, recipe.batch + 1) if recipe.batch % n == 0)
