"""Every format that can be read, told apart by the names of a linear's stored tensors."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from torch import Tensor

from compress.quantize.formats import awq, compressed_tensors, fp8, int8


@dataclass(frozen=True)
class StoredFormat:
    """The last parts of the names of a linear's tensors, and the weight that the tensors stand for."""

    parts: tuple[str, ...]
    unpacked_weight: Callable[[Mapping[str, Tensor]], Tensor]
    optional: frozenset[str] = frozenset()

    @property
    def mark(self) -> str:
        """The part that no other format and no float linear has."""
        return next(part for part in self.parts if part != "weight")

    def missing(self, parts: Set[str]) -> list[str]:
        """Which of the parts that must be there are not."""
        return sorted(set(self.parts) - self.optional - parts)


STORED = {  # by `quant_method`
    "awq": StoredFormat(awq.PARTS, awq.unpacked_weight),
    "compressed-tensors": StoredFormat(
        compressed_tensors.PARTS, compressed_tensors.unpacked_weight, compressed_tensors.OPTIONAL
    ),
    "fp8": StoredFormat(fp8.PARTS, fp8.unpacked_weight),
    "smooth_quant": StoredFormat(int8.PARTS, int8.unpacked_weight),
}


def format_of(parts: Set[str]) -> StoredFormat | None:
    """The format of a module whose tensors have these parts, or None where it is float."""
    return next((stored for stored in STORED.values() if stored.mark in parts), None)
