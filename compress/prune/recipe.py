"""What a user says about pruning: which layers go, how wide the rest stays, or only how large the result may be."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from compress.strict import Strict

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


def _kind(value: object) -> str:
    """Which alternative a value is meant as; the brackets keep the name out of messages."""
    return "[many]" if isinstance(value, list | tuple) else "[share]" if isinstance(value, float) else "[number]"


# A number of layers, or the layers by number, from 0.
Layers = Annotated[
    Annotated[Count, Tag("[number]")]
    | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Tag("[many]")],
    Discriminator(_kind, custom_error_type="layers", custom_error_message="must be a number of layers or a list"),
]
# A size, or a share of the source's, which is rounded to what the engine takes.
Size = Annotated[
    Annotated[Count, Tag("[number]")] | Annotated[Share, Tag("[share]")],
    Discriminator(_kind, custom_error_type="size", custom_error_message="must be a number or a share below 1"),
]


class Compensation(Strict):
    """The linears that stay make good what is missing, by least squares over the calibration windows."""

    damping: float = Field(0.1, gt=0, le=10, description="pull to the plain cut, as a share of the mean Gram diagonal")


class Ranks(Strict):
    """On how many GPUs TurboMind is to load the result."""

    tensor_parallel: int = Field(1, ge=1)


class DepthRecipe(Ranks):
    """Leaves out decoder layers: those that change their input least, or whose absence the answers show least."""

    method: Literal["depth"]
    remove_layers: Layers
    score: Literal["influence", "kl"] = "influence"  # one run of the whole model; or one for each layer and round
    contiguous: bool = False  # neighbours only
    windows: int = Field(8, ge=1, description="calibration windows that KL is measured on")
    compensation: Compensation | None = None  # null: the layers that stay keep their weights, bit for bit

    @property
    def run(self) -> int:
        """Neighbours that are scored as one."""
        return self.remove_layers if self.contiguous and isinstance(self.remove_layers, int) else 1


class Contract(Ranks):
    """What sizes are asked for: a model that TurboMind loads, and in 4 bits with such groups later."""

    group_size: Literal[128, 32] | None = 128  # null: it will stay in 16 bits


class WidthRecipe(Contract):
    """Narrows every layer alike, after leaving out `remove_layers` by the rise of KL.

    `gram` chooses what can be made good best and makes it good; `activation` chooses what is active least and cuts.
    """

    method: Literal["width"]
    intermediate_size: Size | None = None
    kv_heads: Size | None = None  # with their query heads
    hidden_size: Size | None = None
    remove_layers: Layers | None = None
    importance: Literal["gram", "activation"] = "gram"
    damping: float = Field(0.1, gt=0, le=10, description="pull to the plain cut, as a share of the mean Gram diagonal")
    windows: int = Field(8, ge=1, description="calibration windows that KL is measured on, where layers go")

    @model_validator(mode="after")
    def _narrows(self) -> "WidthRecipe":
        if self.intermediate_size is self.kv_heads is self.hidden_size is None:
            raise ValueError("none of intermediate_size, kv_heads and hidden_size; say one, or use method: depth")
        return self


class ParametersTarget(Strict):
    """The weights of the decoder's linears, without embeddings and head, as a share of the source's."""

    parameters: Share


class LatencyTarget(Strict):
    """The bytes that a decoded token reads, as a share of the source's (`budget.decode_bytes`): a model, no clock."""

    latency: Share


SIZES = ("intermediate_size", "kv_heads", "hidden_size", "remove_layers")


def _bounded(raw: object) -> str:
    """What a target bounds; the brackets keep the name out of messages."""
    said = set(raw if isinstance(raw, dict) else getattr(raw, "__dict__", {}))
    return f"[{', '.join(sorted(said))}]"


Target = Annotated[
    Annotated[ParametersTarget, Tag("[parameters]")] | Annotated[LatencyTarget, Tag("[latency]")],
    Discriminator(
        _bounded, custom_error_type="target", custom_error_message="must be parameters or latency with a share"
    ),
]


class MixRecipe(Contract):
    """Meets a target with the mix of fewer layers and narrower ones that the answers show least."""

    method: Literal["mix"]
    target: Target
    importance: Literal["gram", "activation"] = "gram"
    damping: float = Field(0.1, gt=0, le=10, description="pull to the plain cut, as a share of the mean Gram diagonal")
    windows: int = Field(8, ge=1, description="calibration windows that KL is measured on")

    @model_validator(mode="before")
    @classmethod
    def _chooses(cls, raw: Any) -> Any:
        said = [key for key in SIZES if isinstance(raw, dict) and key in raw]
        if said:
            raise ValueError(
                f"a target chooses the sizes; remove {', '.join(said)}, or say method: width and no target"
            )
        return raw
