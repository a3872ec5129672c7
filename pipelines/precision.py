"""The precision that a training or a writing asks for, and what this machine makes of it."""

import sys
from typing import TypeVar

import torch

from compress.distill.recipe import DistillRecipe, GenerateRecipe
from compress.quantize.precision import multiplies_bfloat16

Recipe = TypeVar("Recipe", bound=DistillRecipe | GenerateRecipe)


def fitted(recipe: Recipe, place: str) -> Recipe:
    """The recipe; in float32, and saying so, where it asks for bf16 of a processor without instructions for that.

    Such a processor takes many times as long for the shorter numbers as for the exact ones. The manifest describes
    what this returns.
    """
    kind = torch.device(place).type
    if recipe.precision != "bf16" or multiplies_bfloat16(kind):
        return recipe
    told = "precision: bf16 is asked for, and this processor has no instructions for it: products are in float32"
    print(f"turbopress: {told}", file=sys.stderr, flush=True)
    return recipe.model_copy(update={"precision": "float32"})  # type: ignore[return-value]  # of the same type
