"""Several ways to meet a target, from which measuring chooses.

They differ in how many layers go, and in whether some groups of heads or some of the residual stream go too; the rest
of the budget goes to feed-forward channels.
"""

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
    depth = _layers_alone(source, recipe)
    narrower = [{name: size} for name in ("kv_heads", "hidden_size") for size in legal_sizes(source, name, recipe)[-1:]]
    tried: list[tuple[int, Sizes]] = [(n, {}) for n in sorted({0, depth // 3, 2 * depth // 3, depth})]
    tried += [(n, sizes) for sizes in narrower for n in sorted({0, depth // 2})]
    found = [way for n, sizes in tried if n < source.num_layers for way in _filled(source, recipe, n, sizes)]
    if not found:
        said = f"{bound(recipe.target):g} of the source's cannot be met"
        raise CompressError(f"{place}.target: {said} with a quarter of the feed-forward channels; ask for more")
    return list({str(way): way for way in found}.values())


def _layers_alone(source: ModelConfig, recipe: MixRecipe) -> int:
    """How many layers must go where nothing else does; all, where that does not help."""
    for n in range(1, source.num_layers):
        if share(_config(source, n, {}), source, recipe.target) <= bound(recipe.target):
            return n
    return source.num_layers


def _filled(source: ModelConfig, recipe: MixRecipe, layers: int, sizes: Sizes) -> Iterator[Way]:
    """The way with the most feed-forward channels that meets the target, if any does."""
    now = size_of(source, "intermediate_size")
    legal = [size for size in legal_sizes(source, "intermediate_size", recipe) if size >= LEAST_SHARE * now]
    for inter in [now, *legal[::-1]]:
        whole = sizes if inter == now else {**sizes, "intermediate_size": inter}
        config = _config(source, layers, whole)
        cost = share(config, source, recipe.target)
        if cost <= bound(recipe.target) and not broken(config, source, recipe):
            yield Way(layers, whole, cost)
            return


def _config(source: ModelConfig, layers: int, sizes: Sizes) -> ModelConfig:
    return with_sizes(source, sizes).replace(num_hidden_layers=source.num_layers - layers)
