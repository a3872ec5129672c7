"""One decoder layer of a variant beside its parent's: what each linear and each set of channels is like."""

# W, V (out, in) a linear's weight in the parent and in the variant · h (windows, length, hidden) residual stream

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.explain.clipping import Scheme, clipped, grid_range, scheme_of
from compress.explain.fold import Fold, folds
from compress.explain.measured import Input, Layer, Linear
from compress.explain.probe import Probe
from compress.quantize.grid import fit_grid, nearest
from compress.quantize.sites import LINEARS, SITES

ROUNDED, PLAIN = "rounded", "plain"  # the weight errors that are probed


@dataclass(frozen=True)
class Pair:
    """A layer of the parent and the variant's in its place, both in memory, and how the latter is stored."""

    number: int
    parent: nn.Module
    variant: nn.Module
    checkpoint: Checkpoint
    folds: Mapping[str, Fold]

    @classmethod
    def of(cls, number: int, parent: nn.Module, variant: nn.Module, checkpoint: Checkpoint) -> "Pair":
        """The pair, its folds found."""
        return cls(number, parent, variant, checkpoint, folds(parent, variant, checkpoint.config))

    def probe(self) -> Probe:
        """Watches the parent's linears for what the variant's weights, and plainly rounded ones, would have lost."""
        return Probe(self.parent, {name: self._errors(name) for name in LINEARS})

    def linears(self, probe: Probe) -> list[Linear]:
        """What each linear lost."""
        return [self._linear(name, probe) for name in LINEARS]

    def inputs(self, probe: Probe) -> list[Input]:
        """What each set of linears reads."""
        return [self._input(site.key, probe) for site in SITES]

    def _errors(self, name: str) -> dict[str, Tensor]:
        W, V, scheme = _weight(self.parent, name), _weight(self.variant, name), self._scheme(name)
        errors = {ROUNDED: self.folds[name].undone(V) - W}
        if scheme is not None:
            errors[PLAIN] = nearest(W, fit_grid(W, scheme.bits, scheme.group_size)) - W
        return errors

    def _linear(self, name: str, probe: Probe) -> Linear:
        scheme = self._scheme(name)
        error = probe.relative(name, ROUNDED)
        if scheme is None:
            return Linear(self.number, name, error, None, None, None)
        V = _weight(self.variant, name)
        grid = grid_range(self._stored(name), V, scheme)
        outside, given_up = clipped(self.folds[name].done(_weight(self.parent, name)), grid)
        return Linear(self.number, name, error, probe.relative(name, PLAIN), outside, given_up)

    def _input(self, key: str, probe: Probe) -> Input:
        channels, s = probe.channels[key], self.folds[key].s
        greatest = channels.greatest
        scaled = (s[greatest[0]] / s.median()).item()
        return Input(self.number, key, channels.peak, channels.kurtosis, greatest, scaled)

    def _scheme(self, name: str) -> Scheme | None:
        """The whole numbers that the linear is stored in; None where it was left in 16 bits, or is no such format."""
        scheme = scheme_of(self.checkpoint.quantization)
        kept = f"{self._at(name)}.weight" in self.checkpoint.names
        fits = scheme is not None and _weight(self.parent, name).shape[1] % scheme.group_size == 0
        return scheme if fits and not kept else None

    def _stored(self, name: str) -> dict[str, Tensor]:
        """What lies on disk for a linear, by the last part of its name."""
        at = f"{self._at(name)}."
        names = [n for n in self.checkpoint.layer_names(self.number) if n.startswith(at)]
        return {n.removeprefix(at): t for n, t in self.checkpoint.tensors(names).items()}

    def _at(self, name: str) -> str:
        return f"model.layers.{self.number}.{name}"


def _weight(layer: nn.Module, name: str) -> Tensor:
    return layer.get_parameter(f"{name}.weight").data


def relative_error(
    ours: Float[Tensor, "windows length hidden"], theirs: Float[Tensor, "windows length hidden"]
) -> float | None:
    """The mean over tokens of ‖h − h̃‖² / ‖h̃‖²: one token of enormous activations counts as one. None if no number."""
    power = theirs.square().sum(-1).clamp(min=torch.finfo(theirs.dtype).tiny)
    error = ((ours - theirs).square().sum(-1) / power).mean().item()
    return error if error < float("inf") else None


def behind(
    number: int,
    after: Float[Tensor, "windows length hidden"],
    swapped: Float[Tensor, "windows length hidden"],
    variant: Float[Tensor, "windows length hidden"],
) -> Layer:
    """What stands behind a layer: the parent's stream, the one swapped in this layer alone, and the variant's."""
    sizes = after.abs()
    largest = sizes.flatten().argmax().item()
    position, channel = (int(largest) // after.shape[2]) % after.shape[1], int(largest) % after.shape[2]
    massive = (sizes.max() / sizes[0].median().clamp(min=torch.finfo(after.dtype).tiny)).item()
    error, drift = relative_error(swapped, after), relative_error(variant, after)
    return Layer(number, error, drift, None, massive, channel, position)
