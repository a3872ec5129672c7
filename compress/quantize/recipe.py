"""What a user says about quantization, each number with its meaning."""

from typing import Annotated, Literal

from pydantic import Field

from compress.quantize.formats.int4 import Int4FormatName
from compress.quantize.schemes import Keep
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
    damping: float = Field(0.1, gt=0, description="added to the Gram's diagonal, as a share of its mean")


class Nearest(Strict):
    """Every weight to its nearest grid point."""

    method: Literal["nearest"]


class Gptq(Strict):
    """Columns in order of falling Gram diagonal, each one's error made good by those after it; then refined.

    A round of refinement fits the scales to the codes, then moves single codes while that lowers the output error.
    """

    method: Literal["gptq"]
    damping: float = Field(0.05, gt=0, le=1, description="added to the diagonal, as a share of its mean")
    refine: int = Field(2, ge=0, le=10, description="rounds")


Rounding = Annotated[Nearest | Gptq, Field(discriminator="method")]


class AwqRecipe(Strict):
    """4-bit asymmetric weights; `null` for scale, clip, feedback or keep leaves that out."""

    method: Literal["awq"] = "awq"
    format: Int4FormatName = "awq"
    bits: Literal[4] = 4
    group_size: Literal[32, 64, 128] = 128
    scale: ScaleSearch | None = ScaleSearch(points=20)
    clip: ClipSearch | None = ClipSearch(points=20, least=0.6)
    feedback: Feedback | None = Feedback(share=0.6, damping=0.1)
    rounding: Rounding = Gptq(method="gptq", damping=0.05, refine=2)
    keep: Keep | None = None
