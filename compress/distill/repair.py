"""What of a 4-bit model distillation may move: the scales of its groups, or its codes as well; its format stays.

Scales alone (EfficientQAT's end-to-end phase, arXiv 2407.11062) are few and cannot fit little text too well; codes can
win back more and want more of it. The norms are trained along either way, what stays in 16 bits is not.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.strict import Strict


class Scales(Strict):
    """Scales and norms move, each by a factor that `learning_rate` is the rate of; codes stay."""

    method: Literal["scales"]


class Codes(Strict):
    """Codes move as well: each is the nearest whole number to a latent value that is trained."""

    method: Literal["codes"]
    rate: float = Field(5.0, gt=0, description="of a latent, in steps of its grid, as a multiple of learning_rate")


def _named(said: Any) -> Any:
    """`train: scales` is short for `train: {method: scales}`."""
    return {"method": said} if isinstance(said, str) else said


Repair = Annotated[Annotated[Scales | Codes, Field(discriminator="method")], BeforeValidator(_named)]
