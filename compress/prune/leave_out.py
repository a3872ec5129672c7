"""How far a model moves from itself when decoder layers are left out: KL measured for many choices in one walk.

Every choice has a residual stream of its own from the first layer that it leaves out; before that it is the trunk's.
So each layer is read once for all choices, at n layers a walk is about n²/2 layer runs and n runs of the head over the
windows, and what waits on the host is n times their hidden states. Greedy removal of r layers is r such walks: for
InternLM2-7B (32 layers), 8 layers and 8 windows of 512 tokens, about 4,000 layer runs of 4,096 tokens.
"""

import math
from collections.abc import Sequence

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.hidden import HiddenStates
from compress.checkpoint.runner import LayerRunner
from compress.explain.head import Head, window_kl
from compress.progress import Progress, silent
from compress.prune.overflow import out_of_range
from compress.prune.text import Text
from compress.quantize.resources import Resources

Removed = frozenset[int]


class LeaveOut:
    """The whole model's answers on some windows, and what is lost of them without some layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: Text,
        resources: Resources,
        progress: Progress = silent,
    ) -> None:
        self.tokens, self.counts = text.tokens, text.counts
        self.resources, self.progress = resources, progress
        self.num_layers = checkpoint.config.num_layers
        self._runner, self._head = self._opened(checkpoint)
        self._whole: HiddenStates | None = None

    @torch.no_grad()
    def kl_nats(self, trunk: Removed, choices: Sequence[Removed]) -> list[float]:
        """KL(whole ‖ without) in nats a token, for each choice of layers that go besides those of the trunk."""
        if trunk and self._whole is None:
            self.kl_nats(frozenset(), [])
        main, streams = self._embedded(self._runner), dict[int, HiddenStates]()
        for n in self.progress(range(self.num_layers), "layer"):
            streams |= {k: self._copied(main) for k, choice in enumerate(choices) if n == min(choice)}
            layer = self._runner.load(n)
            for k, stream in streams.items():
                if n not in choices[k] | trunk:
                    self._runner.run_(layer, stream)
            if n not in trunk:
                self._runner.run_(layer, main)
            self._runner.release(n)
        if not trunk:
            self._whole = main
        return [self._kl(streams[k], self._runner, self._head, choice | trunk) for k, choice in enumerate(choices)]

    @torch.no_grad()
    def kl_of(self, model: Checkpoint) -> float:
        """KL(whole ‖ model) in nats a token, for any model with the same vocabulary."""
        if self._whole is None:
            self.kl_nats(frozenset(), [])
        runner, head = self._opened(model)
        stream = self._embedded(runner)
        for n in self.progress(range(model.config.num_layers), "layer"):
            runner.run_(runner.load(n), stream)
            runner.release(n)
        return self._kl(stream, runner, head, frozenset())

    def _kl(self, stream: HiddenStates, runner: LayerRunner, head: Head, removed: Removed) -> float:
        assert self._whole is not None
        total = 0.0
        for (at, ours), (_, theirs) in zip(stream.batches(), self._whole.batches(), strict=True):
            found = window_kl(head, ours.float(), self._head, theirs.float(), self.counts[at], self._head_batch)
            total += float(found.sum())
        if not math.isfinite(total):
            place = self._overflow(self._runner, frozenset()) or self._overflow(runner, removed) or "lm_head"
            raise out_of_range(place, runner.dtype)
        return total / float(self.counts.sum())

    def _overflow(self, runner: LayerRunner, removed: Removed) -> str | None:
        """The layer behind which something is no number: what was measured shows only that it is so at the end."""
        stream = self._embedded(runner)
        for n in (n for n in range(runner.checkpoint.config.num_layers) if n not in removed):
            runner.run_(runner.load(n), stream)
            runner.release(n)
            if not all(bool(h.isfinite().all()) for _, h in stream.batches()):
                return f"layers.{n}"
        return None

    @property
    def _head_batch(self) -> int:
        """Windows under the head at a time: those of about 2,048 tokens."""
        return max(1, 2048 // self.tokens.shape[1])

    def _opened(self, checkpoint: Checkpoint) -> tuple[LayerRunner, Head]:
        with_ = self.resources
        runner = LayerRunner(checkpoint, with_.device, with_.batch, with_.dtype, prefetch=with_.prefetch)
        return runner, Head(checkpoint, with_.device)

    def _embedded(self, runner: LayerRunner) -> HiddenStates:
        hidden = self.resources.room((*self.tokens.shape, runner.hidden_size))
        runner.embed_(hidden, self.tokens)
        return hidden

    def _copied(self, states: HiddenStates) -> HiddenStates:
        copy = self.resources.room(states.shape)
        copy.copy_(states)
        return copy
