"""What `prune` and `quantize` in params.yaml may hold: a recipe of one of three methods, and what it is made from."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from compress.checkpoint.config import LayoutName
from compress.prune.recipe import DepthRecipe, MixRecipe, WidthRecipe
from compress.quantize.recipe import AwqRecipe
from compress.quantize.schemes import Fp8Recipe, Int8Recipe
from compress.quantize.turbomind import KERNELS
from compress.strict import Strict


class Measured(Strict):
    """A model that is made while windows of a text go through its parent."""

    from_: str = Field(alias="from")
    # Kept out of manifests, which name the text by its digest.
    data: str = Field("calibration", exclude=True, description="the text: one of `data` or of `generate`")


class Pruned(Measured):
    """A model made smaller."""


class DepthVariant(DepthRecipe, Pruned):
    """A model with fewer layers."""


class WidthVariant(WidthRecipe, Pruned):
    """A model with narrower layers."""


class MixVariant(MixRecipe, Pruned):
    """A model that meets a target."""


class Served(Measured):
    """A model written so that an engine loads it on `tensor_parallel` GPUs."""

    layout: LayoutName = "llama"
    tensor_parallel: int = Field(1, ge=1)


class Calibrated(Served):
    """A model that windows of text go through while it is made."""

    batch: int = Field(8, ge=1, description="windows on the device at a time; fewer take less of its memory")


class AwqVariant(AwqRecipe, Calibrated):
    """A model in 4 bits."""

    @field_validator("group_size")
    @classmethod
    def _servable(cls, group_size: int, info: ValidationInfo) -> int:
        legal = KERNELS[info.data["format"]].group_sizes if "format" in info.data else (group_size,)
        if group_size not in legal:
            verb = "is" if len(legal) == 1 else "are"
            raise ValueError(f"only {' and '.join(map(str, legal))} {verb} taken by TurboMind")
        return group_size


class Fp8Variant(Fp8Recipe, Served):
    """A model in 8-bit floating-point numbers."""


class Int8Variant(Int8Recipe, Calibrated):
    """A model in 8-bit whole numbers."""


def _method(raw: object) -> str:
    """The method that a recipe names; 4 bits by AWQ where it names none."""
    return str(raw.get("method", "awq") if isinstance(raw, Mapping) else getattr(raw, "method", None))


QuantizeVariant = Annotated[
    Annotated[AwqVariant, Tag("awq")] | Annotated[Fp8Variant, Tag("fp8")] | Annotated[Int8Variant, Tag("int8")],
    Discriminator(
        _method, custom_error_type="method", custom_error_message="must hold settings of method awq, fp8 or int8"
    ),
]


def _prune_method(raw: object) -> str:
    """The method that a recipe names; the brackets keep it out of messages."""
    return f"[{raw.get('method') if isinstance(raw, Mapping) else getattr(raw, 'method', None)}]"


PruneVariant = Annotated[
    Annotated[DepthVariant, Tag("[depth]")]
    | Annotated[WidthVariant, Tag("[width]")]
    | Annotated[MixVariant, Tag("[mix]")],
    Discriminator(
        _prune_method,
        custom_error_type="method",
        custom_error_message="must hold settings of method depth, width or mix",
    ),
]
