"""What one pass over the calibration windows leaves behind for each input of a layer: its Gram matrix.

For a linear layer with weight error ΔW the output error over all tokens is exactly tr(ΔW H ΔWᵀ), H = Σ x xᵀ: every
search below reads H and never runs the layer again.
"""

# H (in, in) Gram · m (in,) mean |x| · ΔW (out, in) weight error

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class InputStatistics:
    """Float32 sums over the tokens seen so far."""

    gram_sum: Float[Tensor, "in_features in_features"] | None = None
    magnitude_sum: Float[Tensor, " in_features"] | None = None
    num_tokens: int = 0

    def add_(self, x: Float[Tensor, "*batch in_features"]) -> None:
        """Counts more tokens in."""
        rows = x.flatten(0, -2).float()
        gram, magnitude = rows.t() @ rows, rows.abs().sum(0)
        self.gram_sum = gram if self.gram_sum is None else self.gram_sum.add_(gram)
        self.magnitude_sum = magnitude if self.magnitude_sum is None else self.magnitude_sum.add_(magnitude)
        self.num_tokens += rows.shape[0]

    @property
    def H(self) -> Float[Tensor, "in_features in_features"]:
        """The mean of x xᵀ."""
        assert self.gram_sum is not None
        return self.gram_sum / self.num_tokens

    @property
    def magnitude(self) -> Float[Tensor, " in_features"]:
        """The mean of |x|."""
        assert self.magnitude_sum is not None
        return self.magnitude_sum / self.num_tokens


@dataclass
class Collector:
    """Statistics of the inputs of chosen linears, by name."""

    of: dict[str, InputStatistics] = field(default_factory=dict)

    @contextmanager
    def watching(self, layer: nn.Module, linears: list[str]) -> Iterator[None]:
        """While this is open, every run of `layer` is counted."""
        handles = [self._watch(layer.get_submodule(name), name) for name in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, module: nn.Module, name: str) -> torch.utils.hooks.RemovableHandle:
        statistics = self.of.setdefault(name, InputStatistics())
        return module.register_forward_pre_hook(lambda _, inputs: statistics.add_(inputs[0]))


def output_error(
    delta: Float[Tensor, "out in_features"], H: Float[Tensor, "in_features in_features"]
) -> Float[Tensor, " out"]:
    """Mean squared error of each output for the weight error `delta`: the diagonal of ΔW H ΔWᵀ."""
    return ((delta @ H) * delta).sum(1)
