"""A finding, what else is known where one is made, and the thresholds that the rules share."""

from collections.abc import Mapping
from dataclasses import dataclass

# Nats a token: what people who compare quantizations call near lossless, good, noticeable; above, answers change.
LOSSES = ((0.01, "next to nothing"), (0.05, "a little"), (0.1, "noticeably"), (float("inf"), "much"))
NEAR_LOSSLESS = LOSSES[0][0]
STANDS_OUT = 2.0  # times an even share


@dataclass(frozen=True)
class About:
    """What is known besides the measurement: names, the recipe (None for another's artifact), and sizes."""

    variant: str
    parent: str
    text: str
    recipe: Mapping[str, object] | None
    size_bytes: int
    layer_extra_bytes: int | None  # what a decoder layer in 16 bits would add

    def key(self, ingredient: str, value: str | None = None) -> str:
        """What params.yaml says there, in full for an artifact of ours."""
        place = ingredient if self.recipe is None else f"quantize.{self.variant}.{ingredient}"
        return f"`{place}: {{{value}}}`" if value else f"`{place}`"

    def said(self, *path: str) -> object:
        """What the recipe says, None where it is not known."""
        value: object = self.recipe
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Finding:
    """What is seen, and what to try; some things are only to be known."""

    seen: str
    remedy: str | None = None
