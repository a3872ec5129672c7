"""One training step of a decoder layer's latents.

On a GPU it is recorded once and replayed: the steps of a small layer are launches more than work.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.quantize.recipe import Learned
from compress.quantize.workers import Workers

if TYPE_CHECKING:
    from compress.quantize.learned import Latent

WARM_UP = 2  # runs before a recording, which libraries use to set themselves up


@dataclass(frozen=True)
class Lesson:
    """Windows to learn from: a layer's inputs, the outputs wanted of it, and 1 where a token counts, else 0."""

    h: Float[Tensor, "windows length hidden"]
    y: Float[Tensor, "windows length hidden"]
    counts: Float[Tensor, "windows length 1"]

    def __getitem__(self, windows: slice) -> "Lesson":
        return Lesson(self.h[windows], self.y[windows], self.counts[windows])

    def __len__(self) -> int:
        return len(self.h)


class Stepper:
    """Computes a layer's output from latents, its error, and steps against the error's gradient."""

    def __init__(
        self,
        layer: nn.Module,
        latents: Mapping[str, "Latent"],
        rope: tuple[Tensor, Tensor],
        recipe: Learned,
        workers: Workers,
        like: Lesson,
    ) -> None:
        self.layer, self.latents, self.rope, self.recipe, self.workers = layer, latents, rope, recipe, workers
        device = rope[0].device
        self._gain = torch.ones((), device=device)
        self._rates = torch.zeros(2, device=device)
        self._batch = max(1, recipe.batch // workers.count)
        parts = (like.h, like.y, like.counts)
        self._h, self._y, self._counts = (
            torch.zeros(self._batch, *part.shape[1:], dtype=part.dtype, device=device) for part in parts
        )
        self._recording: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def error(self, lesson: Lesson) -> float:
        """Mean squared error of the outputs, over all workers' windows."""
        weights = self._weights()
        return self._mean([_squares(self._output(weights, part.h), part) for part in self._parts(lesson)], lesson)

    @torch.no_grad()
    def power(self, lesson: Lesson) -> float:
        """Mean square of what the layer adds to its input."""
        return self._mean([_squares(part.h, part) for part in self._parts(lesson)], lesson)

    def normalize_(self, gradient: float, error: float) -> None:
        """From here on, outputs as wrong as `error` have gradients of this root mean square."""
        self._gain.fill_((gradient / max(error, 1e-30) ** 0.5) ** 0.5)  # it comes twice: in the error and behind it

    def step_(self, lesson: Lesson, chosen: list[int], left: float) -> None:
        """A step on the chosen windows, at the recipe's rates times the share of the steps that is left."""
        self._rates.copy_(torch.tensor([self.recipe.learning_rate * left, self.recipe.scale_rate * left]))
        for slot, window in enumerate(chosen):  # one by one: page-locked memory is read without a copy between
            self._h[slot].copy_(lesson.h[window], non_blocking=True)
            self._y[slot].copy_(lesson.y[window], non_blocking=True)
            self._counts[slot].copy_(lesson.counts[window], non_blocking=True)
        if not self._h.is_cuda or self.workers.count > 1:
            self._compute_()
        elif self._recording is None:
            self._recording = self._record()
        if self._recording is not None:
            self._recording.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        """The step as a recording; the rates are zero while it is made, so that nothing moves."""
        rates = self._rates.clone()
        self._rates.zero_()
        lane = torch.cuda.Stream()
        lane.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(lane):
            for _ in range(WARM_UP):
                self._compute_()
        torch.cuda.current_stream().wait_stream(lane)
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            self._compute_()
        self._rates.copy_(rates)
        return recording

    def _compute_(self) -> None:
        weights = {name: weight.requires_grad_() for name, weight in self._weights().items()}
        with torch.enable_grad():
            wrong = (self._output(weights, self._h).float() - self._y.float()) * self._counts * self._gain
            gradients = torch.autograd.grad(wrong, list(weights.values()), wrong.detach())
        for latent, gradient in zip(self.latents.values(), gradients, strict=True):
            latent.move_(self.workers.sum_(gradient), self._rates[0], self._rates[1])

    def _weights(self) -> dict[str, Tensor]:
        return {f"{name}.weight": latent.weight(self._h.dtype) for name, latent in self.latents.items()}

    def _output(self, weights: dict[str, Tensor], h: Tensor) -> Float[Tensor, "windows length hidden"]:
        """The layer's output with these weights."""
        arguments = {"attention_mask": None, "position_embeddings": self.rope}
        out = torch.func.functional_call(self.layer, weights, (h,), arguments)
        return out[0] if isinstance(out, tuple) else out

    def _parts(self, lesson: Lesson) -> Iterator[Lesson]:
        device = self._h.device
        for start in range(0, len(lesson), self._batch):
            part = lesson[start : start + self._batch]
            yield Lesson(part.h.to(device), part.y.to(device), part.counts.to(device))

    def _mean(self, sums: list[Tensor], lesson: Lesson) -> float:
        total = self.workers.sum_(torch.stack(sums).sum())
        return float(total) / self.workers.total(int(lesson.counts.sum()) * lesson.h.shape[-1])


def _squares(out: Tensor, lesson: Lesson) -> Tensor:
    return ((out.float() - lesson.y.float()) * lesson.counts).square().sum(dtype=torch.float64)
