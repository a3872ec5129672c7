"""What a user says about quantization, each number with its meaning."""

from typing import Annotated, Literal

from pydantic import Field

from compress.quantize.schemes import Int4FormatName, Keep
from compress.strict import Strict


class ScaleSearch(Strict):
    """AWQ's per-channel scales: s = |x|^α / |w|^(1−α), the α of `points` in [0, 1) with the least output error."""

    points: int = Field(20, ge=1, le=100)


class ClipSearch(Strict):
    """Each group's range shrunk by the factor of `points` in [`least`, 1] with the least output error."""

    points: int = Field(20, ge=1, le=100)
    least: float = Field(0.6, gt=0, lt=1)


class Feedback(Strict):
    """Each linear makes good a share of what the rounded layers before it have done to the hidden states."""

    share: float = Field(0.6, gt=0, le=1)


class Nearest(Strict):
    """Every weight to its nearest grid point."""

    method: Literal["nearest"]


class Gptq(Strict):
    """Columns in order of falling Gram diagonal, each one's error made good by those after it; then refined.

    A round of refinement fits the scales to the codes, then moves single codes while that lowers the output error.
    """

    method: Literal["gptq"]
    refine: int = Field(2, ge=0, le=10, description="rounds")


class Learned(Strict):
    """Starts from what `gptq` finds; then the codes and scales of a layer are trained together.

    Signed gradient steps on the error of the layer's output; the best step is kept, by windows that were not
    trained on.
    """

    method: Literal["learned"]
    refine: int = Field(2, ge=0, le=10, description="rounds before the training")
    steps: int = Field(200, ge=1, le=10_000)
    batch: int = Field(8, ge=1, description="windows a step")
    learning_rate: float = Field(0.0025, gt=0, le=0.5, description="of a code's step, falling to zero")
    scale_rate: float = Field(0.001, ge=0, le=0.5, description="of a scale, relative")
    held_out: int = Field(16, ge=1, description="windows that choose the step")


Rounding = Annotated[Nearest | Gptq | Learned, Field(discriminator="method")]


class AwqRecipe(Strict):
    """4-bit asymmetric weights; `null` for scale, clip, feedback or keep leaves that out."""

    method: Literal["awq"] = "awq"
    format: Int4FormatName = "awq"
    bits: Literal[4] = 4
    group_size: Literal[32, 64, 128] = 128
    scale: ScaleSearch | None = ScaleSearch(points=20)
    clip: ClipSearch | None = ClipSearch(points=20, least=0.6)
    feedback: Feedback | None = Feedback(share=0.6)
    damping: float = Field(
        0.4, gt=0, le=1, description="added to the Gram's diagonal, as a share of its mean; more: better on other text"
    )
    rounding: Rounding = Gptq(method="gptq", refine=2)
    keep: Keep | None = None


NAMED = {
    "awq-light": AwqRecipe.model_validate({}),
    "awq-best": AwqRecipe.model_validate({"rounding": {"method": "learned"}}),
}
