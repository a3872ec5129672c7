"""The walk that narrows a model: calibration windows go through the whole and the pruned model side by side.

Layer for layer each set of linears is measured on what the pruned layers before it really give, beside what the whole
model has there. Feed-forward channels go at the input of down, groups of heads at the input of o. With `gram` every
linear is then the least-squares answer to the whole model's output, so that it makes good what was taken from it and,
where it writes to the residual stream, what the layers before have lost; a layer that was left out is made good by the
one behind it in the same way. One layer and one batch lie on the device; the windows wait on the host.
"""

# x, x̃ (tokens, in) input of a site in the pruned and in the whole model · h, h̃ residual stream beside them
# H = E[x xᵀ] · C = E[x̃ xᵀ] · R = E[(h̃ − h) xᵀ] · T (out, in) = W C + R: see least_squares.py

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.progress import Progress, silent
from compress.prune.cut import group_units, keep_inputs_, narrow_, scale_norm_, set_weight_
from compress.prune.least_squares import hardest_to_replace, refit
from compress.prune.outer import narrowed_outer, rms_ratio
from compress.prune.overflow import out_of_range
from compress.quantize.counting import Counted
from compress.quantize.resources import Resources
from compress.quantize.sites import SITES, Site, joined_weight
from compress.quantize.statistics import Accumulator, Statistics
from compress.quantize.stream import FLOATS, LEAVE, ROUNDED, WHOLE_LAYER, Stream


@dataclass(frozen=True)
class Plan:
    """What is to become of a model: its configuration then, the layers that go, the residual channels that stay."""

    config: ModelConfig
    removed: Sequence[int]
    channels: Int64[Tensor, " channels"]
    importance: str
    damping: float


@dataclass(frozen=True)
class SiteError:
    """Relative output error (‖Δy‖² / ‖y‖²) of a linear that writes to the residual stream, on the inputs of the
    pruned model, beside that of the plain cut."""

    layer: int
    linear: str
    error: float
    plain_error: float


@torch.no_grad()
def narrow_model(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    plan: Plan,
    writer: ModelWriter,
    resources: Resources,
    progress: Progress = silent,
    counted: Bool[Tensor, "windows length"] | None = None,
) -> list[SiteError]:
    """Writes the pruned model and returns what each such linear lost."""
    with resources.products():
        walk = _Walk(checkpoint, plan, writer, resources, tokens, Counted(counted))
        errors = [error for n in progress(range(checkpoint.config.num_layers), "layer") for error in walk.step(n)]
        walk.finish()
    return errors


class _Walk:
    """Where the windows stand in both models."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        writer: ModelWriter,
        resources: Resources,
        tokens: Tensor,
        counted: Counted,
    ) -> None:
        self.checkpoint, self.plan, self.writer, self.counted = checkpoint, plan, writer, counted
        self.resources = resources
        self.runner = LayerRunner(
            checkpoint, resources.device, resources.batch, resources.dtype, prefetch=resources.prefetch
        )
        self.channels = plan.channels.to(resources.device)
        self.narrows = len(plan.channels) < self.runner.hidden_size
        self.whole = Stream(self.runner, resources.room((*tokens.shape, self.runner.hidden_size)))
        self.pruned = Stream(self.runner, resources.room((*tokens.shape, len(plan.channels))))
        self.runner.embed_(self.whole.hidden, tokens)
        for at, h in self.whole.hidden.batches():
            self.pruned.hidden.put_(at, h[..., self.channels])
        self.num_tokens = tokens.numel() if counted.where is None else max(1, int(counted.where.sum()))
        self._written = 0
        sizes = ("num_key_value_heads", "intermediate_size", "hidden_size")
        self._apart = any(plan.config.fields[size] != checkpoint.config.fields[size] for size in sizes)

    def step(self, n: int) -> list[SiteError]:
        """Takes the windows through layer n of both models, and writes what is left of it."""
        original = self.runner.load(n)
        errors: list[SiteError] = []
        if n in self.plan.removed:
            self._part_()
            self.whole.move_(original, *WHOLE_LAYER)
        elif self._apart:
            errors = self._layer(original, n)
        else:  # nothing is missing yet: the layer stays what it is
            self.whole.move_(original, *WHOLE_LAYER)
            self._store(original)
        self.runner.release(n)
        return errors

    def _part_(self) -> None:
        """From here on the pruned model's windows are elsewhere than the whole model's."""
        if not self._apart:
            self.pruned.hidden.copy_(self.whole.hidden)
            self._apart = True

    def _layer(self, original: nn.Module, n: int) -> list[SiteError]:
        layer = copy.deepcopy(original)
        if self.narrows:
            narrow_(layer, self.channels)
        errors = [error for number, site in enumerate(SITES) for error in self._site_(layer, original, number, site, n)]
        self.pruned.move_(layer, LEAVE)
        self._store(layer)
        return errors

    def finish(self) -> None:
        """Writes what lies outside the layers."""
        outer = self.checkpoint.tensors(self.checkpoint.outer_names())
        if self.narrows:
            outer = narrowed_outer(
                outer,
                self.checkpoint.config,
                self.whole.hidden,
                self.pruned.hidden,
                self.plan.channels,
                None if self.plan.importance == "activation" else self.plan.damping,
                self.counted,
            )
        self.writer.outer(outer)
        self.writer.close()

    def _site_(self, layer: nn.Module, original: nn.Module, number: int, site: Site, n: int) -> list[SiteError]:
        """Cuts and refits the linears of a site."""
        if not (site.writes_residual or self.narrows):  # it reads what it read before, and keeps its weights
            if ROUNDED[number].moves:
                self.pruned.move_(layer, ROUNDED[number])
            return []
        place = f"layers.{n}.{site.key}"
        if self.narrows and not site.writes_residual:
            scale_norm_(layer, site.producer, rms_ratio(self.whole.hidden, self.channels))
        statistics, T, power = self._measure(layer, original, number, site, place)
        B, H = joined_weight(layer, site), statistics.H
        kept = self._kept(site, B, T, statistics, place)
        if kept is not None:
            keep_inputs_(layer, site, kept, self.plan.config.head_dim)
            B, T, H = B[:, kept], T[:, kept], H[kept][:, kept]
        W = B if self.plan.importance == "activation" else refit(B, T, H, self._damping(len(H)), place)
        for name, rows in site.rows(layer).items():
            set_weight_(layer, name, W[rows])
        if not site.writes_residual:
            return []
        return [SiteError(n, site.key, *(_relative_error(M, T, H, power) for M in (W, B)))]

    def _measure(
        self, layer: nn.Module, original: nn.Module, number: int, site: Site, place: str
    ) -> tuple[Statistics, Tensor, float]:
        """What the site reads in the pruned model, T, and the mean square of y where y is written to the residual."""
        inputs, W = Accumulator(), joined_weight(original, site)
        W = W[self.channels] if site.writes_residual else W
        power, count = 0.0, 0
        pruned, whole = self.pruned.through(layer, ROUNDED[number]), self.whole.through(original, FLOATS[number])
        for at, (h, seen), (h_whole, meant) in zip(self.pruned.hidden.slices(), pruned, whole, strict=True):
            x, x_whole = self.counted(at, seen), self.counted(at, meant)
            drift = self.counted(at, h_whole[..., self.channels] - h)
            inputs.add(x, drift=torch.cat([x_whole, drift], 1) if site.writes_residual else x_whole)
            if site.writes_residual:
                power += float((x_whole.float() @ W.t() + drift.float()).square().sum())
                count += len(x)
        means = inputs.means()
        if not torch.isfinite(means.H.diagonal()).all():
            raise out_of_range(place, self.runner.dtype)
        assert means.R is not None
        C, lost = means.R[: W.shape[1]], means.R[W.shape[1] :]
        return means, W @ C + lost if site.writes_residual else W @ C, power / max(count, 1)

    def _kept(
        self, site: Site, B: Tensor, T: Tensor, statistics: Statistics, place: str
    ) -> Int64[Tensor, " kept"] | None:
        """The inputs of a site that stay, or None where all do."""
        H = statistics.H
        units, keep = self._units(site, len(H), H.device)
        if keep == len(units):
            return None
        if self.plan.importance == "activation":
            left = statistics.magnitude[units].sum(1).argsort(descending=True, stable=True)[:keep].sort().values
        else:
            W = refit(B, T, H, self._damping(len(H)), place)
            left = hardest_to_replace(W, H, units, keep, place)
        return units[left].flatten()

    def _units(self, site: Site, size: int, device: torch.device) -> tuple[Int64[Tensor, "units size"], int]:
        """What goes or stays together among a site's inputs, and how many of them stay."""
        before, after = self.checkpoint.config, self.plan.config
        if site.key == "mlp.down_proj":
            return torch.arange(size, device=device)[:, None], int(after.fields["intermediate_size"])
        if site.key == "self_attn.o_proj":
            heads_each = before.num_heads // before.num_kv_heads
            return group_units(before.num_kv_heads, heads_each, before.head_dim, device), after.num_kv_heads
        return torch.arange(size, device=device)[:, None], size

    def _damping(self, inputs: int) -> float:
        """More where there are few tokens for so many inputs: least squares would fit their noise."""
        return self.plan.damping + inputs / self.num_tokens

    def _store(self, layer: nn.Module) -> None:
        dtype = getattr(torch, self.plan.config.fields["torch_dtype"])
        named = {f"model.layers.{self._written}.{name}": p.data for name, p in layer.named_parameters()}
        self.writer.layer(self._written, {name: tensor.to("cpu", dtype) for name, tensor in named.items()})
        self._written += 1


def _relative_error(W: Tensor, T: Tensor, H: Tensor, power: float) -> float:
    """E‖W x − y‖² / E‖y‖²."""
    return float(((W @ H) * W).sum() - 2 * (W * T).sum() + power) / max(power, torch.finfo(torch.float32).tiny)
