"""Which layers are measured alone: those whose swap changes the residual stream most, or those that were named."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from compress.errors import CompressError

Streams = dict[int, Tensor]  # the parent's windows, by the layer that was swapped for the variant's
OUTER = -1  # the embeddings, instead of a layer


@dataclass(frozen=True)
class Chosen:
    """The layers `named`, or the `worst` of all where none is."""

    named: frozenset[int]
    worst: int

    @classmethod
    def of(cls, said: str, num_layers: int) -> "Chosen":
        """What `all`, `worst:N` and `3,7` mean."""
        if said == "all":
            return cls(frozenset(), num_layers)
        if match := re.fullmatch(r"worst:(\d+)", said):
            return cls(frozenset(), int(match[1]))
        named = [int(word) for word in said.split(",")] if re.fullmatch(r"\d+(,\d+)*", said) else []
        if not named or max(named) >= num_layers:
            raise CompressError(
                f"--layers: {said}; write all, worst:N, or numbers from 0 to {num_layers - 1} with commas between"
            )
        return cls(frozenset(named), 0)

    def runs(self, num_layers: int) -> int:
        """At most so many layers run more than without them: each chosen one goes through all that come behind it."""
        if self.named:
            return sum(num_layers - 1 - n for n in self.named)
        return sum(min(n, self.worst) for n in range(num_layers))

    def streams(self, num_layers: int) -> int:
        """At most so many streams lie on the host at once."""
        return len(self.named) or min(self.worst, num_layers)

    def add_(self, streams: Streams, layer: int, stream: Tensor, errors: Mapping[int, float | None]) -> None:
        """Keeps the layer's stream if it is among the chosen so far, and lets the one go that no longer is."""
        if layer in self.named:
            streams[layer] = stream
        elif self.worst:
            streams[layer] = stream
            kept = [n for n in streams if n != OUTER]
            if len(kept) > self.worst:
                del streams[min(kept, key=lambda n: (_size(errors[n]), -n))]


def _size(error: float | None) -> float:
    return float("inf") if error is None else error
