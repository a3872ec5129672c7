"""What an explanation consists of: plain numbers, for a table, a picture, a file."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """What one linear lost on its parent's own inputs, with the scales that were folded into its neighbours undone.

    Errors are ‖ΔW x‖² / ‖W x‖²; `plain_error` is that of rounding to nearest in the same bits and groups. `outside` is
    the share of the weights beyond their group's grid, `given_up` the mean share of a group's range. None: not known
    for this format.
    """

    layer: int
    name: str
    error: float
    plain_error: float | None
    outside: float | None
    given_up: float | None

    @property
    def place(self) -> str:
        return f"layers.{self.layer}.{self.name}"


@dataclass(frozen=True)
class Input:
    """The channels that a set of linears reads, in the parent; `name` is the first of the linears.

    `peak` is the greatest channel's mean magnitude over the median channel's, `kurtosis` that of all entries (3 for a
    Gaussian), `channels` the three greatest, `scaled` what the greatest one's column was multiplied by before rounding
    against the median column's.
    """

    layer: int
    name: str
    peak: float
    kurtosis: float
    channels: tuple[int, ...]
    scaled: float

    @property
    def place(self) -> str:
        return f"layers.{self.layer}.{self.name}"


@dataclass(frozen=True)
class Layer:
    """What one decoder layer does to the residual stream h; errors are means over tokens of ‖Δh‖² / ‖h‖².

    `error` is that of the layer alone, on the parent's inputs; `drift` that of the variant so far; None, where they are
    no numbers. `kl_nats` is the divergence of the parent with this layer swapped for the variant's, None where it was
    not asked for. `massive` is the greatest |h| over the median, in `channel` at `position` of a window.
    """

    layer: int
    error: float | None
    drift: float | None
    kl_nats: float | None
    massive: float
    channel: int
    position: int


@dataclass(frozen=True)
class Overflow:
    """Where a model's activations first leave float16: a module, and the greatest magnitude (infinite, if NaN)."""

    place: str
    largest: float


@dataclass(frozen=True)
class Explanation:
    """All that was measured; divergences in nats a token, means over the positions that count, None where the variant
    gives no numbers."""

    kl_nats: float | None
    kl_by_domain: Mapping[str, float | None]
    outer_kl_nats: float | None  # with only the embeddings, the last norm and the head swapped
    layers: tuple[Layer, ...]
    linears: tuple[Linear, ...]
    inputs: tuple[Input, ...]
    overflow: Overflow | None  # of the variant
    parent_overflow: Overflow | None
    windows: int
    length: int

    def share(self, layer: Layer) -> float | None:
        """The part of the whole divergence that a layer alone makes; parts need not add up to one."""
        return None if layer.kl_nats is None or not self.kl_nats else layer.kl_nats / self.kl_nats
