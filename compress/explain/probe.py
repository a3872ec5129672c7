"""What passes through a layer's linears while windows run through it, summed over all tokens."""

# x (tokens, in) input · y (tokens, out) output without bias · ΔW (out, in) error of a weight

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.explain.measured import Overflow
from compress.quantize.sites import LINEARS, SITES

HALF_MAX = 65504.0  # the greatest float16


@dataclass
class Channels:
    """Sums over tokens of |x| of each channel, and of x² and x⁴ of all."""

    magnitude: Float[Tensor, " in_features"]
    square: float = 0.0
    fourth: float = 0.0
    num_entries: int = 0

    def add(self, x: Float[Tensor, "tokens in_features"]) -> None:
        """Counts a batch in."""
        self.magnitude += x.abs().sum(0)
        self.square += x.square().sum(dtype=torch.float64).item()
        self.fourth += x.square().square().sum(dtype=torch.float64).item()
        self.num_entries += x.numel()

    @property
    def peak(self) -> float:
        """The greatest channel's magnitude over the median one's."""
        tiny = torch.finfo(self.magnitude.dtype).tiny
        return (self.magnitude.max() / self.magnitude.median().clamp(min=tiny)).item()

    @property
    def kurtosis(self) -> float:
        """E[x⁴] / E[x²]² over all entries."""
        return self.fourth * self.num_entries / max(self.square, torch.finfo(torch.float64).tiny) ** 2

    @property
    def greatest(self) -> tuple[int, ...]:
        """The three channels of greatest magnitude."""
        return tuple(self.magnitude.topk(min(3, len(self.magnitude))).indices.tolist())


class Probe:
    """For each linear the power of its output and of what each named weight error makes of its input."""

    def __init__(self, layer: nn.Module, errors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.power = dict.fromkeys(LINEARS, 0.0)
        self.error = {name: dict.fromkeys(kinds, 0.0) for name, kinds in errors.items()}
        keys = {site.key: layer.get_parameter(f"{site.key}.weight") for site in SITES}
        self.channels = {key: Channels(torch.zeros_like(W[0])) for key, W in keys.items()}
        self._layer, self._errors = layer, errors

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, what runs through the layer is counted in."""
        with _hooked(self._layer, self._seen):
            yield

    def relative(self, name: str, kind: str) -> float:
        """‖ΔW x‖² / ‖W x‖²."""
        return self.error[name][kind] / max(self.power[name], torch.finfo(torch.float64).tiny)

    def _seen(self, name: str, linear: nn.Linear, x: Tensor, y: Tensor) -> None:
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        self.power[name] += (y if linear.bias is None else y - linear.bias).square().sum(dtype=torch.float64).item()
        for kind, delta in self._errors[name].items():
            self.error[name][kind] += (x @ delta.t()).square().sum(dtype=torch.float64).item()
        if name in self.channels:
            self.channels[name].add(x)


class Gauge:
    """The greatest magnitude that each linear gave, the first to leave float16 remembered."""

    def __init__(self) -> None:
        self.overflow: Overflow | None = None

    @contextmanager
    def watching(self, layer: nn.Module, number: int) -> Iterator[None]:
        """While this is open, the outputs of the layer's linears are looked at."""
        with _hooked(layer, lambda name, _, __, y: self.see(f"layers.{number}.{name}", y)):
            yield

    def see(self, place: str, y: Tensor) -> None:
        """Looks at one output; NaN counts as infinite."""
        largest = y.abs().nan_to_num(nan=float("inf")).max().item()
        if self.overflow is None and largest > HALF_MAX:
            self.overflow = Overflow(place, largest)


@contextmanager
def _hooked(layer: nn.Module, see: Callable[[str, Any, Tensor, Tensor], None]) -> Iterator[None]:
    handles = [
        layer.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: see(name, module, args[0], output)
        )
        for name in LINEARS
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
