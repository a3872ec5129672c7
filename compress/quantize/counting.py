"""Which tokens count: all, or those at which the text says so."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Counted:
    """Picks the tokens of a batch that count."""

    where: Bool[Tensor, "windows length"] | None

    def __call__(self, at: slice, values: Float[Tensor, "batch length channels"]) -> Float[Tensor, "tokens channels"]:
        """The values at the tokens of these windows that count."""
        return values.flatten(0, 1) if self.where is None else values[self.where[at].to(values.device)]
