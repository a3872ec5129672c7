"""What a user says about distillation."""

from typing import Literal

from pydantic import Field

from compress.distill.repair import Repair
from compress.strict import Strict


class DistillRecipe(Strict):
    """A student trained to answer as its teacher does: AdamW, cosine schedule with warm-up."""

    steps: int = Field(ge=1, description="updates")
    batch: int = Field(ge=1, description="windows an update")
    learning_rate: float = Field(gt=0, description="at the end of the warm-up")
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="greatest norm of the gradient")
    precision: Literal["float32", "bf16"] = Field("float32", description="of the matrix products")
    seed: int = 0
    train: Repair | None = Field(None, description="what moves in a 4-bit student; null: all weights of a 16-bit one")
