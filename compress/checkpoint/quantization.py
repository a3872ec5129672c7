"""The names in a `quantization_config`: canonical in memory, a layout's own on disk."""

from collections.abc import Callable, Iterable, Mapping

from compress.checkpoint.config import LayoutName
from compress.checkpoint.layout import canonical_modules, modules_in_layout

# Where formats say which linears stay in 16 bits.
KEPT = ("modules_to_not_convert", "ignore")
Config = Mapping[str, object]


def in_layout(said: Config, layout: LayoutName) -> dict[str, object]:
    """The same with the names that a layout has for modules."""
    return _renamed(said, lambda modules: modules_in_layout(modules, layout))


def canonical(said: Config, layout: LayoutName) -> dict[str, object]:
    """The inverse of `in_layout`."""
    return _renamed(said, lambda modules: canonical_modules(modules, layout))


def kept_modules(said: Config) -> list[str]:
    """The linears that a quantized model says it has in 16 bits."""
    (names,) = [said[key] for key in KEPT if key in said] or [[]]
    assert isinstance(names, list)
    return names


def _renamed(said: Config, rename: Callable[[Iterable[str]], list[str]]) -> dict[str, object]:
    lists = {key: rename(value) for key, value in said.items() if key in KEPT and isinstance(value, list)}
    return {**said, **lists}
