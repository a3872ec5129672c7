"""Distillation and the bits of its student: a 4-bit student says what moves in it, a 16-bit one moves as a whole."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from compress.distill.repair import Repair
from compress.quantize.recipe import AwqRecipe


class Distilled(Protocol):
    """What `distill` in params.yaml says of a variant."""

    @property
    def from_(self) -> str: ...

    @property
    def train(self) -> Repair | None: ...


def problems(distill: Mapping[str, Distilled], quantize: Mapping[str, object]) -> Iterator[str]:
    """Students in a format that is not trained, and a `train` that does not go with the student."""
    for key, variant in distill.items():
        origin = _origin(distill, variant.from_)
        if origin in quantize and not isinstance(quantize[origin], AwqRecipe):
            yield f"distill.{key}.from: {variant.from_} is in 8 bits, and only 4 bits are repaired; use another method"
        elif origin in quantize and variant.train is None:
            yield f"distill.{key}.train: missing, and {variant.from_} is in 4 bits; write train: scales or train: codes"
        elif origin not in quantize and variant.train is not None:
            said = variant.train.method
            yield f"distill.{key}.train: {said}, but {variant.from_} is in 16 bits; quantize it first or remove train"


def _origin(distill: Mapping[str, Distilled], key: str) -> str:
    """The model that a chain of distillations began with."""
    while key in distill:
        key = distill[key].from_
    return key
