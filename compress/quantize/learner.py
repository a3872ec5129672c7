"""Learned rounding inside the walk: what the layer got, what it should give, and how a trained layer comes back."""

import math
from dataclasses import replace
from itertools import repeat

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from compress.errors import CompressError
from compress.quantize.layer import QuantizedLinear
from compress.quantize.learned import Latent, learn
from compress.quantize.precision import repeatable
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.resources import Resources
from compress.quantize.stepper import Lesson
from compress.quantize.stream import WHOLE_LAYER, Stream, compute

NEAR_BYTES = 2**31  # of a GPU's memory in which a layer's inputs may stay, and as much its outputs


class Learner:
    """Trains each layer's codes on the inputs that the rounded model gives it."""

    def __init__(
        self,
        recipe: AwqRecipe,
        rounding: Learned,
        resources: Resources,
        rounded: Stream,
        floats: Stream | None,
        counted: Bool[Tensor, "windows length"] | None = None,
    ) -> None:
        self.share = recipe.feedback.share if recipe.feedback else 0.0
        self.rounding, self.resources, self.rounded, self.floats = rounding, resources, rounded, floats
        _require_two(resources.workers.total(len(rounded.hidden)), resources.workers.count)
        shape = rounded.hidden.shape
        fits = math.prod(shape) * resources.dtype.itemsize <= NEAR_BYTES
        self._start, self._wanted = (resources.room(shape, NEAR_BYTES if fits else 0) for _ in range(2))
        self._counts = torch.ones(*shape[:2], 1) if counted is None else counted[..., None].float()

    def remember_(self) -> None:
        """Keeps the windows as the layer gets them."""
        self._start.copy_(self.rounded.hidden)

    def return_(self) -> None:
        """Puts the windows back to where the layer begins."""
        self.rounded.hidden.copy_(self._start)

    def learn(
        self, layer: nn.Module, original: nn.Module, linears: dict[str, QuantizedLinear], seed: int
    ) -> tuple[dict[str, QuantizedLinear], float, float]:
        """The linears trained, and the layer's relative output error before and after."""
        self._want(original)
        lesson = Lesson(self._start.all(), self._wanted.all(), self._counts)
        latents = {
            name: Latent.start(linear.q, _required(linear.lean), linear.grid) for name, linear in linears.items()
        }
        rope = self.rounded.runner.rope(lesson.h[:1].to(self.resources.device))
        with repeatable():
            learning = learn(layer, latents, lesson, rope, self.rounding, seed, self.resources.workers)
        made = {
            name: replace(linear, q=learning.linears[name][0], grid=learning.linears[name][1], lean=None)
            for name, linear in linears.items()
        }
        return made, learning.start_error, learning.error

    @torch.no_grad()
    def _want(self, original: nn.Module) -> None:
        """The float layer's output on the rounded model's inputs, moved by a share towards the float model's own."""
        floats = repeat(None) if self.floats is None else (h for _, h in self.floats.hidden.batches())
        for (at, h), h_float in zip(self._start.batches(), floats, strict=False):
            y = compute(original, h, self.rounded.runner.rope(h), *WHOLE_LAYER)
            if h_float is not None:
                y = torch.lerp(y.float(), h_float.float(), self.share).to(y.dtype)
            self._wanted.put_(at, y)


def _require_two(windows: int, processes: int) -> None:
    """Refuses what would be trained on the windows that choose the step."""
    if windows // processes < 2:
        each = "" if processes == 1 else f" for {processes} processes"
        raise CompressError(
            f"rounding.method: learned trains on some windows and chooses by others, but there is {windows}{each}; "
            "give more calibration windows, or use gptq"
        )


def _required(lean: Tensor | None) -> Tensor:
    assert lean is not None, "rounding was not told to learn"
    return lean
