"""The formats that hold 4-bit codes and their grids, by the name that a recipe calls them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from compress.quantize.formats import awq, compressed_tensors
from compress.quantize.grid import Grid
from compress.quantize.schemes import Int4FormatName


@dataclass(frozen=True)
class Int4Format:
    """Two inverse verbs over codes and grid, and what `config.json` says of a group size and the linears left out."""

    pack_linear: Callable[[Tensor, Grid], dict[str, Tensor]]
    unpack_linear: Callable[[Mapping[str, Tensor]], tuple[Tensor, Grid]]
    quantization_config: Callable[[int, Sequence[str]], dict[str, object]]


_NAMED: dict[Int4FormatName, Int4Format] = {
    "awq": Int4Format(awq.pack_linear, awq.unpack_linear, awq.quantization_config),
    "compressed-tensors": Int4Format(
        compressed_tensors.pack_linear, compressed_tensors.unpack_linear, compressed_tensors.quantization_config
    ),
}


def format_named(name: Int4FormatName) -> Int4Format:
    """The format that a recipe names."""
    return _NAMED[name]
