"""What a user says about formats other than AWQ's, and about what stays in 16 bits."""

from typing import Annotated, Literal

from pydantic import Field

from compress.strict import Strict

Int4FormatName = Literal["awq", "compressed-tensors"]


class KeepByError(Strict):
    """In each layer, linears stay in 16 bits until the relative output errors of the others add up to no more."""

    by: Literal["error"]
    most: float = Field(gt=0, description="sum of ‖Δy‖² / ‖y‖² over a layer's seven linears")


class KeepBySize(Strict):
    """The linears that lose most for their size stay in 16 bits, of the whole model, as far as the size allows."""

    by: Literal["size"]
    most_megabytes: float = Field(gt=0, description="by how much the model may become larger; 10⁶ bytes")


Keep = Annotated[KeepByError | KeepBySize, Field(discriminator="by")]


class Fp8Recipe(Strict):
    """8-bit floating-point weights in blocks of 128×128, rounded to nearest; no calibration."""

    method: Literal["fp8"]


class SmoothSearch(Strict):
    """SmoothQuant's scales: s = max|x|^α / max|w|^(1−α), the α of `points` in (0, 1) with the least output error."""

    points: int = Field(9, ge=1, le=100)


class Int8Recipe(Strict):
    """8-bit weights with a scale an output, for inputs that the engine rounds to 8 bits; LMDeploy's PyTorch engine."""

    method: Literal["int8"]
    smooth: SmoothSearch | None = SmoothSearch(points=9)
