"""Which linears stay in 16 bits, decided by what each would lose: measure first, then choose.

Engines fuse linears, so not every choice can be served: q, k and v go together (InternLM2's layout has them in one
tensor, and TurboMind would unpack all three in the other), gate and up go together, and down may be quantized only
where they are. That leaves twelve choices a layer, few enough to look at all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compress.quantize.schemes import Keep, KeepByError
from compress.quantize.sites import LINEARS

Place = tuple[int, str]  # layer, linear
ATTENTION, OUTPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)
WIDE, DOWN = ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)
# Every set of a layer's linears that may stay in 16 bits while the engine takes the others quantized.
CHOICES = tuple(
    frozenset((*attention, *output, *mlp))
    for attention in ((), ATTENTION)
    for output in ((), OUTPUT)
    for mlp in ((), DOWN, (*WIDE, *DOWN))
)


@dataclass(frozen=True)
class Cost:
    """What quantizing one linear costs, its relative output error (‖Δy‖² / ‖y‖²), and the bytes that it saves."""

    layer: int
    linear: str
    error: float
    saved_bytes: int


Layer = Mapping[str, Cost]


def saved_bytes(num_weights: int, group_size: int) -> int:
    """By how much a linear in 4 bits is smaller than in 16; each group has a scale of 16 bits and a zero of 4."""
    return 2 * num_weights - num_weights // 2 - num_weights // group_size * 5 // 2


def kept_in_16_bits(costs: Sequence[Cost], keep: Keep | None) -> frozenset[Place]:
    """The linears of a model, or of some of its layers, that stay in 16 bits; of every layer all seven are given."""
    layers: dict[int, dict[str, Cost]] = {}
    for cost in costs:
        layers.setdefault(cost.layer, {})[cost.linear] = cost
    if keep is None:
        return frozenset()
    if isinstance(keep, KeepByError):
        chosen = {n: _cheapest(layer, keep.most) for n, layer in layers.items()}
    else:
        chosen = _dearest(layers, round(keep.most_megabytes * 1e6))
    return frozenset((n, linear) for n, choice in chosen.items() for linear in choice)


def module_names(kept: Iterable[Place]) -> list[str]:
    """The canonical names of linears, in the model's order, as `quantization_config` takes them."""
    ordered = sorted(kept, key=lambda place: (place[0], LINEARS.index(place[1])))
    return [f"model.layers.{layer}.{linear}" for layer, linear in ordered]


def _cheapest(layer: Layer, most: float) -> frozenset[str]:
    """Of the choices that leave no more than `most` of error, the one of fewest bytes."""
    enough = [choice for choice in CHOICES if _error(layer, layer.keys() - choice) <= most]
    return min(enough, key=lambda choice: (_bytes(layer, choice), _error(layer, layer.keys() - choice)))


def _dearest(layers: Mapping[int, Layer], budget: int) -> dict[int, frozenset[str]]:
    """Choices that together take no more bytes than there are, extended in order of error avoided for each byte."""
    chosen = dict.fromkeys(layers, CHOICES[0])
    while upgrades := [
        (_error(layer, extra) / _bytes(layer, extra), -n, choice)
        for n, layer in layers.items()
        for choice in CHOICES
        if (extra := choice - chosen[n]) and choice > chosen[n] and 0 < _bytes(layer, extra) <= budget
    ]:
        _, minus_n, choice = max(upgrades, key=lambda upgrade: upgrade[:2])
        budget -= _bytes(layers[-minus_n], choice - chosen[-minus_n])
        chosen[-minus_n] = choice
    return chosen


def _error(layer: Layer, linears: Iterable[str]) -> float:
    return sum((layer[linear].error for linear in sorted(linears)), 0.0)


def _bytes(layer: Layer, linears: Iterable[str]) -> int:
    return sum(layer[linear].saved_bytes for linear in linears)
