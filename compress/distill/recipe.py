"""What a user says about distillation."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from compress.distill.losses import (
    AttentionRelation,
    CrossEntropy,
    ForwardKl,
    Hidden,
    LayerLoss,
    Loss,
    TopKKl,
    VocabularyLoss,
)
from compress.distill.repair import Repair
from compress.strict import Strict


def _one_or_mix(value: Any) -> str:
    return "[mix]" if isinstance(value, list) else "[one]"  # in brackets: no key of the file


Losses = Annotated[
    Annotated[Loss, Tag("[one]")] | Annotated[list[Loss], Tag("[mix]"), Field(min_length=1)], Discriminator(_one_or_mix)
]


class TopK(Strict):
    """Of each token the teacher's likeliest entries and what is left for all others."""

    top_k: int = Field(ge=1)


Cache = Literal["hidden"] | TopK


class Evaluate(Strict):
    """Windows of the corpus that are never trained on, and how often the student is measured on them."""

    every: int = Field(ge=1, description="steps between two measurements; the last step has one in any case")
    windows: int = Field(ge=1, description="held out; the student keeps the weights that had the least loss on them")


class DistillRecipe(Strict):
    """A student trained to answer as its teacher does: AdamW, cosine schedule with warm-up."""

    steps: int = Field(ge=1, description="updates")
    batch: int = Field(ge=1, description="windows an update, over all processes")
    accumulate: int = Field(1, ge=1, description="passes that an update's windows are divided into, to save memory")
    learning_rate: float = Field(gt=0, description="at the end of the warm-up")
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="greatest norm of the gradient")
    train: Repair | None = Field(None, description="what moves in a 4-bit student; null: all weights of a 16-bit one")
    loss: Losses = ForwardKl()
    cache: Cache | None = Field(None, description="hidden or {top_k: n}: the teacher runs first, alone, onto the disk")
    precision: Literal["float32", "bf16"] = Field("float32", description="of the matrix products")
    checkpointing: bool = Field(False, description="layers are computed again in the backward pass, to save memory")
    compile: bool | None = Field(
        None, description="layers and loss; null: on a GPU, in a training of 200 steps or more"
    )
    evaluate: Evaluate | None = None
    save_every: int | None = Field(None, ge=1, description="steps; a killed run goes on from the last state saved")
    seed: int = 0

    @property
    def losses(self) -> list[VocabularyLoss | LayerLoss]:
        """The terms of the loss; one is a mix of one."""
        return self.loss if isinstance(self.loss, list) else [self.loss]

    @model_validator(mode="after")
    def _possible(self) -> "DistillRecipe":
        if self.batch % self.accumulate:
            raise ValueError(f"batch: {self.batch} windows do not divide into {self.accumulate} passes of accumulate")
        if self.compile and any(isinstance(loss, AttentionRelation) for loss in self.losses):
            raise ValueError("compile: attention_relation looks inside the layers; leave compile out")
        for loss in self.losses if self.cache is not None else []:
            self._require_cached(loss)
        return self

    def accepts(self, cache: Cache) -> bool:
        """Whether all of the losses can be had from such a cache."""
        cached = self.model_copy(update={"cache": cache})
        try:
            for loss in self.losses:
                cached._require_cached(loss)
        except ValueError:
            return False
        return True

    def _require_cached(self, loss: VocabularyLoss | LayerLoss) -> None:
        """Refuses what a cache does not hold."""
        if isinstance(loss, Hidden | AttentionRelation):
            raise ValueError(f"cache: {loss.kind} needs the teacher's layers, and no cache has them; leave cache out")
        if not isinstance(self.cache, TopK) or isinstance(loss, CrossEntropy):
            return
        if not isinstance(loss, TopKKl) or loss.k > self.cache.top_k or loss.temperature != 1:
            raise ValueError(
                f"cache: top_k: {self.cache.top_k} serves cross_entropy and top_k_kl with k of at most "
                f"{self.cache.top_k} at temperature 1; use cache: hidden for {loss.kind}"
            )


class GenerateRecipe(Strict):
    """How much a model writes, from what beginnings and how freely."""

    windows: int = Field(ge=1)
    length: int = Field(ge=16, description="tokens of a window, its beginning included")
    prompt_tokens: int = Field(16, ge=1, description="of a window that are the beginning of a text")
    temperature: float = Field(1.0, gt=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1, description="only the likeliest entries that together have this probability")
    batch: int = Field(64, ge=1, description="windows that are written at once")
    precision: Literal["float32", "bf16"] = Field("float32", description="of the matrix products")
    seed: int = 0
