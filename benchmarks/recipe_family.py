"""What is done to a model in `benchmarks/prune_distill.py`, on which texts, and how a row says so."""

import hashlib
from dataclasses import dataclass, field

import torch

from compress.distill.recipe import DistillRecipe
from compress.prune.recipe import DepthRecipe, MixRecipe, WidthRecipe
from compress.quantize.recipe import AwqRecipe


@dataclass(frozen=True)
class Texts:
    """Windows to decide on, to learn from, and by domain to be measured on."""

    calibration: torch.Tensor
    training: torch.Tensor
    held_out: dict[str, torch.Tensor]
    names: dict[str, str] = field(default_factory=dict)  # of the first two

    def about(self, which):
        """What a row says of a text: its name, how much it is, and by what it is known again."""
        tokens = getattr(self, which)
        digest = hashlib.sha256(tokens.int().numpy().tobytes()).hexdigest()[:16]
        return f"{self.names.get(which, which)}: {len(tokens)} windows of {tokens.shape[1]}, sha256 {digest}"


@dataclass(frozen=True)
class Recipes:
    """What is done to a model."""

    prune: DepthRecipe | WidthRecipe | MixRecipe
    distill: DistillRecipe
    quantize: AwqRecipe
    repair: DistillRecipe | None
    quantize_student: AwqRecipe | None = None  # null: as the base is

    def of(self, stage):
        """A stage's recipe, and the text that it reads."""
        return {
            "base": (None, None), "pruned": (self.prune, "calibration"), "distilled": (self.distill, "training"),
            "base-w4": (self.quantize, "calibration"),
            "distilled-w4": (self.quantize_student or self.quantize, "calibration"),
            "distilled-w4-repaired": (self.repair, "training"),
        }[stage]  # fmt: skip


def said(stage, texts, recipes):
    """The recipe of a stage and the text that it read, so that the row can be made again."""
    recipe, text = recipes.of(stage)
    described = None if recipe is None else recipe.model_dump_json(exclude={"from_", "teacher"})
    return {"text": text and texts.about(text), "recipe": described}
