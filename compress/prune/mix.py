"""Several ways to meet a target, from which measuring chooses.

They differ in how many layers go, and in whether some groups of heads or some of the residual stream go too; the rest
of the budget goes to feed-forward channels.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from compress.checkpoint.config import ModelConfig
from compress.errors import CompressError
from compress.prune.budget import bound, share
from compress.prune.recipe import MixRecipe
from compress.prune.sizes import Sizes, broken, legal_sizes, size_of, with_sizes

LEAST_SHARE = 0.25  # of the feed-forward channels; a layer without them is none


@dataclass(frozen=True)
class Way:
    """Numbers that meet a target: how many layers go, and the sizes of those that stay."""

    remove_layers: int
    sizes: Sizes
    share: float

    def __str__(self) -> str:
        parts = [f"{name} {size}" for name, size in self.sizes.items()]
        return ", ".join([f"−{self.remove_layers} layers", *parts] if self.remove_layers else parts)


def ways(source: ModelConfig, recipe: MixRecipe, place: str) -> list[Way]:
    """The ways to try, no two alike; refuses a target that none meets."""
    now = size_of(source, "intermediate_size")
    channels = [size for size in legal_sizes(source, "intermediate_size", recipe) if size >= LEAST_SHARE * now] + [now]
    found = [way for n, sizes in _tried(source, recipe) for way in _filled(source, recipe, n, sizes, channels)]
    if not found:
        said = f"{bound(recipe.target):g} of the source's cannot be met"
        raise CompressError(f"{place}.target: {said} with a quarter of the feed-forward channels; ask for more")
    return list({str(way): way for way in found}.values())


def _tried(source: ModelConfig, recipe: MixRecipe) -> list[tuple[int, Sizes]]:
    """Numbers of layers to leave out, and sizes other than that of the feed-forward part."""
    depth = _layers_alone(source, recipe)
    some = {0, depth // 3, 2 * depth // 3, depth} - {source.num_layers}
    tried: list[tuple[int, Sizes]] = [(n, {}) for n in sorted(some)]
    for name in ("kv_heads", "hidden_size"):
        tried += [(n, {name: size}) for size in legal_sizes(source, name, recipe)[-1:] for n in sorted({0, depth // 2})]
    return tried


def _layers_alone(source: ModelConfig, recipe: MixRecipe) -> int:
    """How many layers must go where nothing else does; all, where that does not help."""
    fewer = range(1, source.num_layers)
    return 1 + bisect_left(fewer, True, key=lambda n: _share(source, recipe, n, {}) <= bound(recipe.target))


def _filled(source: ModelConfig, recipe: MixRecipe, layers: int, sizes: Sizes, channels: list[int]) -> Iterator[Way]:
    """The way with the most feed-forward channels that meets the target, if any does; cost rises with `channels`."""

    def whole(inter: int) -> Sizes:
        return sizes if inter == size_of(source, "intermediate_size") else {**sizes, "intermediate_size": inter}

    meet = bisect_right(channels, bound(recipe.target), key=lambda size: _share(source, recipe, layers, whole(size)))
    if meet:
        said = whole(channels[meet - 1])
        if not broken(_config(source, layers, said), source, recipe):
            yield Way(layers, said, _share(source, recipe, layers, said))


def _share(source: ModelConfig, recipe: MixRecipe, layers: int, sizes: Sizes) -> float:
    return share(_config(source, layers, sizes), source, recipe.target)


def _config(source: ModelConfig, layers: int, sizes: Sizes) -> ModelConfig:
    return with_sizes(source, sizes).replace(num_hidden_layers=source.num_layers - layers)
