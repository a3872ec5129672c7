"""Measuring a variant beside its parent, with one decoder layer of each in memory.

The windows go through the parent and through the variant side by side. After each layer there is a third stream: the
parent's, which went through the variant's layer just here. What the parent's remaining layers make of it is what the
quantization of that layer alone costs. Such a stream is one layer run more for every layer to come, so it is kept for
the worst layers only; which these are, the error of the residual stream behind the layer says.
"""

# h (windows, length, hidden) residual stream

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.runner import LayerRunner
from compress.corpus import Windows
from compress.errors import CompressError
from compress.explain.head import Head, window_kl
from compress.explain.layer import Pair, behind
from compress.explain.measured import Explanation, Input, Layer, Linear
from compress.explain.probe import Gauge
from compress.explain.streams import OUTER, Chosen, Streams
from compress.progress import Progress, silent

HALF_PRECISION = 2**-7  # how far storing embeddings in 16 bits may move them, relatively


@dataclass
class _Walk:
    """The windows between two layers, on the host, and what the layers so far have given."""

    base: LayerRunner
    ours: LayerRunner
    parent: Tensor
    variant: Tensor
    alone: Streams
    layers: list[Layer] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    gauge: Gauge = field(default_factory=Gauge)
    parent_gauge: Gauge = field(default_factory=Gauge)

    @classmethod
    def start(cls, base: LayerRunner, ours: LayerRunner, tokens: Tensor) -> "_Walk":
        """Before the first layer; swapped embeddings have a stream where more than their type has changed."""
        h, own = base.embed(tokens), ours.embed(tokens)
        same = torch.allclose(h, own, rtol=HALF_PRECISION, atol=1e-5)
        return cls(base, ours, h, own, {} if same else {OUTER: own})

    def layer_(self, n: int, chosen: Chosen) -> None:
        """Takes all streams through layer n."""
        pair = Pair.of(n, self.base.load(n), self.ours.load(n), self.ours.checkpoint)
        probe, before = pair.probe(), self.parent
        with probe.watching(), self.parent_gauge.watching(pair.parent, n):
            self.parent = self.base.run(pair.parent, before)
        swapped = self.base.run(pair.variant, before)
        with self.gauge.watching(pair.variant, n):
            self.variant = self.ours.run(pair.variant, self.variant)
        self.gauge.see(f"layers.{n}", self.variant)
        self.parent_gauge.see(f"layers.{n}", self.parent)
        self.alone = {k: self.base.run(pair.parent, h) for k, h in self.alone.items()}
        self.layers.append(behind(n, self.parent, swapped, self.variant))
        self.linears += pair.linears(probe)
        self.inputs += pair.inputs(probe)
        chosen.add_(self.alone, n, swapped, {layer.layer: layer.error for layer in self.layers})
        self.base.release(n)
        self.ours.release(n)

    def finish(self, windows: Windows) -> Explanation:
        """The divergences, and all that was measured on the way."""
        counts = torch.from_numpy(
            windows.predicts if windows.mask is not None else np.ones_like(windows.tokens)
        ).float()
        head, own = (Head(runner.checkpoint, runner.device) for runner in (self.base, self.ours))

        def kl(h: Tensor, through: Head) -> Tensor:
            return window_kl(through, h, head, self.parent, counts, self.base.batch)

        whole = kl(self.variant, own)
        alone = {n: _mean(kl(h, head), counts) for n, h in self.alone.items() if n != OUTER}
        return Explanation(
            kl_nats=_mean(whole, counts),
            kl_by_domain={
                name: _mean(whole[chosen], counts[chosen])
                for name in sorted(set(windows.domains))
                for chosen in [torch.tensor([domain == name for domain in windows.domains])]
            },
            outer_kl_nats=_mean(kl(self.alone.get(OUTER, self.parent), own), counts),
            layers=tuple(replace(layer, kl_nats=alone.get(layer.layer)) for layer in self.layers),
            linears=tuple(self.linears),
            inputs=tuple(self.inputs),
            overflow=self.gauge.overflow,
            parent_overflow=self.parent_gauge.overflow,
            windows=windows.tokens.shape[0],
            length=windows.tokens.shape[1],
        )


def explain(
    parent: Checkpoint,
    variant: Checkpoint,
    windows: Windows,
    layers: str = "worst:8",
    *,
    device: str = "cpu",
    batch: int = 8,
    progress: Progress = silent,
) -> Explanation:
    """What the variant lost, by layer and linear.

    `layers` says which are measured alone as well: `all`, `worst:N`, or numbers with commas between.
    """
    _require_kin(parent, variant)
    chosen = Chosen.of(layers, parent.config.num_layers)
    runners = LayerRunner(parent, device, batch), LayerRunner(variant, device, batch)
    walk = _Walk.start(*runners, torch.from_numpy(windows.tokens))
    for n in progress(range(parent.config.num_layers), "layer"):
        walk.layer_(n, chosen)
    return walk.finish(windows)


def _require_kin(parent: Checkpoint, variant: Checkpoint) -> None:
    """Refuses two models whose layers are not counterparts."""
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    for key in ("num_hidden_layers", *sizes):
        ours, theirs = variant.config.fields[key], parent.config.fields[key]
        if ours != theirs:
            raise CompressError(
                f"{variant.folder}: {key} is {ours}, and {theirs} in {parent.folder}; name the model that it was "
                "quantized from with --parent"
            )


def _mean(sums: Tensor, counts: Tensor) -> float | None:
    """Nats a token, or None where they are no number."""
    mean = (sums.sum() / counts.sum()).item()
    return mean if abs(mean) < float("inf") else None
