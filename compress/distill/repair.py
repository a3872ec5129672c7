"""What of a 4-bit model distillation may move: the scales of its groups, or its codes as well; its format stays.

Scales alone (EfficientQAT's end-to-end phase, arXiv 2407.11062) are few and cannot fit little text too well; codes can
win back more and want more of it. The norms are trained along either way, linears that stay in 16 bits never,
embeddings and head if that is said: large as they are, they lie in 16 bits and may take what fits on no grid.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.strict import Strict


class _Moving(Strict):
    """What moves whichever the method: scales and norms, each by a factor that `learning_rate` is the rate of."""

    embeddings: float | None = Field(
        None, gt=0,
        description="rate of embeddings and head, in parts of their root mean square, as a multiple of learning_rate; "
        "null: they stay",
    )  # fmt: skip


class Scales(_Moving):
    """Codes stay."""

    method: Literal["scales"]


class Codes(_Moving):
    """Codes move as well: each is the nearest whole number to a latent value that is trained."""

    method: Literal["codes"]
    rate: float = Field(5.0, gt=0, description="of a latent, in steps of its grid, as a multiple of learning_rate")


def _named(said: Any) -> Any:
    """`train: scales` is short for `train: {method: scales}`."""
    return {"method": said} if isinstance(said, str) else said


Repair = Annotated[Annotated[Scales | Codes, Field(discriminator="method")], BeforeValidator(_named)]
