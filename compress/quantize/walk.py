"""The quantizer: calibration windows go through the model once, and each layer is rounded on the way.

Each set of linears is calibrated on what those rounded before it really give, beside what the float model has there.
A walk over a folder where another was killed takes up its layers and ends in the same bytes.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Bool, Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint, expected_shapes
from compress.checkpoint.load import load_into_, unpacked
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.progress import Progress, silent
from compress.quantize.formats.int4 import format_named
from compress.quantize.journal import Journal
from compress.quantize.keep import Cost, Place, kept_in_16_bits, module_names, saved_bytes
from compress.quantize.layer import LayerQuantizer, QuantizedLinear, set_weight_
from compress.quantize.learner import Learner
from compress.quantize.narrow import narrowed
from compress.quantize.recipe import AwqRecipe, Learned, Nearest
from compress.quantize.resources import ON_CPU, Resources
from compress.quantize.sites import LINEARS
from compress.quantize.stream import LEAVE, WHOLE_LAYER, Stream

Store = Callable[[], None]
REPORTED = 16  # windows on which plain rounding, which asks no text, reports what it lost


@dataclass(frozen=True)
class LinearError:
    """Relative output error (‖Δy‖² / ‖y‖²) of one quantized linear, with plain rounding's on the same inputs.

    A linear that stays in 16 bits loses nothing. Where rounding was learned, a further row `layer` says it of what the
    layer adds, after and before the training.
    """

    layer: int
    linear: str
    error: float
    nearest_error: float


@torch.no_grad()
def quantize_model(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    recipe: AwqRecipe,
    writer: ModelWriter,
    resources: Resources = ON_CPU,
    progress: Progress = silent,
    journal: Journal | None = None,
    counted: Bool[Tensor, "windows length"] | None = None,
) -> list[LinearError]:
    """Writes the quantized model and returns what each linear lost, on the tokens that are `counted` if not on all.

    With a `journal` whose entries a killed walk into the same folder left, it goes on behind the last of them. Where
    the recipe keeps linears in 16 bits, a first walk without a trace finds out which.
    """
    if _asks_no_text(recipe):
        tokens, counted = tokens[:REPORTED], None if counted is None else counted[:REPORTED]
    walk = partial(_walk, checkpoint, tokens, counted, recipe, resources, progress)
    kept: frozenset[Place] = frozenset()
    if recipe.keep is not None:
        noted = journal.decision() if journal is not None else None
        kept = frozenset(noted) if noted is not None else _chosen(walk(), checkpoint, recipe)
        if journal is not None:
            journal.decide(sorted(kept))
    errors = walk(writer=writer, journal=journal, kept=kept)
    if resources.workers.rank == 0:
        config = format_named(recipe.format).quantization_config(recipe.group_size, module_names(kept))
        writer.close(config)
    return errors


def _asks_no_text(recipe: AwqRecipe) -> bool:
    return isinstance(recipe.rounding, Nearest) and not any((recipe.scale, recipe.clip, recipe.feedback, recipe.keep))


def _walk(
    checkpoint: Checkpoint,
    tokens: Tensor,
    counted: Tensor | None,
    recipe: AwqRecipe,
    resources: Resources,
    progress: Progress,
    writer: ModelWriter | None = None,
    journal: Journal | None = None,
    kept: frozenset[Place] = frozenset(),
) -> list[LinearError]:
    """Takes the windows through the model once; without a `writer` nothing is stored."""
    errors: list[LinearError] = []
    shares = [None if values is None else resources.workers.share(values) for values in (tokens, counted)]
    with resources.products(), ThreadPoolExecutor(1) as background:
        stored = background.submit(_store_outer, checkpoint, writer if resources.workers.rank == 0 else None)
        walk = _Walk(checkpoint, recipe, writer, resources, shares, journal, kept)
        for n in progress(range(checkpoint.config.num_layers), "layer"):
            lost, store = walk.step(n)
            errors += lost
            stored.result()  # one layer waits to be written at most, and what fails there fails here
            stored = background.submit(store)
        stored.result()
    return errors


def _chosen(errors: Sequence[LinearError], checkpoint: Checkpoint, recipe: AwqRecipe) -> frozenset[Place]:
    """The linears that stay in 16 bits, by what they lost in 4."""
    shapes = expected_shapes(checkpoint.config)

    def saved(error: LinearError) -> int:
        rows, columns = shapes[f"model.layers.{error.layer}.{error.linear}.weight"]
        return saved_bytes(rows * columns, recipe.group_size)

    lost = [error for error in errors if error.linear in LINEARS]
    costs = [Cost(error.layer, error.linear, error.error, saved(error)) for error in lost]
    return kept_in_16_bits(costs, recipe.keep)


class _Walk:
    """Where the windows stand in both models, and what makes of a layer its quantized tensors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: AwqRecipe,
        writer: ModelWriter | None,
        resources: Resources,
        shares: Sequence[Tensor | None],
        journal: Journal | None,
        kept: frozenset[Place],
    ) -> None:
        tokens, counted = shares
        assert tokens is not None
        self.recipe, self.writer, self.resources, self.kept = recipe, writer, resources, kept
        self.journal = journal if writer is not None else None
        self.runner = LayerRunner(
            checkpoint, resources.device, resources.batch, resources.dtype, prefetch=resources.prefetch
        )
        self.rounded = self._embedded(tokens)
        self.floats = self._embedded(tokens) if recipe.feedback else None
        self.quantizer = LayerQuantizer(
            recipe, checkpoint.config, resources.workers, self.rounded, self.floats, counted
        )
        self.learner = (
            Learner(recipe, recipe.rounding, resources, self.rounded, self.floats, counted)
            if isinstance(recipe.rounding, Learned)
            else None
        )

    def step(self, n: int) -> tuple[list[LinearError], Store]:
        """Takes the windows through layer n; returns what was lost in it, and what stores it."""
        original = self.runner.load(n)
        layer = copy.deepcopy(original)
        stored = self.journal.finished(n, self.writer) if self.journal and self.writer else None
        if stored is not None:
            noted, tensors = stored
            set_stored_(layer, tensors, n)
            self.rounded.move_(layer, *WHOLE_LAYER)
            if self.floats is not None:
                self.floats.move_(original, *WHOLE_LAYER)
            errors, store = [LinearError(**row) for row in noted], _nothing
        else:
            errors, tensors = self._quantize_(layer, original, n)
            store = partial(self._store, n, tensors, errors)
        self.runner.release(n)
        return errors, store

    def _quantize_(self, layer: nn.Module, original: nn.Module, n: int) -> tuple[list[LinearError], dict[str, Tensor]]:
        if self.learner is not None:
            self.learner.remember_()
        kept = frozenset(linear for layer_number, linear in self.kept if layer_number == n)
        linears = self.quantizer.round_(layer, original, kept, f"layers.{n}")
        errors = [LinearError(n, name, linear.error, linear.nearest_error) for name, linear in linears.items()]
        linears = {name: linear for name, linear in linears.items() if name not in kept}
        if self.learner is None or not linears:
            self.rounded.move_(layer, LEAVE)
        else:
            linears, start, error = self.learner.learn(layer, original, linears, seed=n)
            errors.append(LinearError(n, "layer", error, start))
            for name, linear in linears.items():
                set_weight_(layer, name, linear)
            self.learner.return_()
            self.rounded.move_(layer, *WHOLE_LAYER)
        return errors, self._tensors(layer, linears, n)

    def _tensors(self, layer: nn.Module, linears: dict[str, QuantizedLinear], n: int) -> dict[str, Tensor]:
        """Canonical tensors of a quantized layer."""
        pack = format_named(self.recipe.format).pack_linear
        packed = {f"{name}.{k}": v for name, lin in linears.items() for k, v in pack(lin.q, lin.grid).items()}
        rest = {name: p.data for name, p in layer.named_parameters() if name.removesuffix(".weight") not in linears}
        halves = narrowed({f"model.layers.{n}.{name}": tensor for name, tensor in rest.items()}, torch.float16)
        named = {f"model.layers.{n}.{name}": tensor for name, tensor in packed.items()}
        return {name: tensor.cpu() for name, tensor in (named | halves).items()}

    def _store(self, n: int, tensors: dict[str, Tensor], errors: list[LinearError]) -> None:
        if self.writer is None or self.resources.workers.rank:
            return
        self.writer.layer(n, tensors)
        if self.journal is not None:
            self.journal.finish(n, [asdict(error) for error in errors])

    def _embedded(self, tokens: Tensor) -> Stream:
        windows, length = tokens.shape
        streams = 1 + (self.recipe.feedback is not None)
        near_bytes = self.resources.near_bytes // streams
        hidden = self.resources.room((windows, length, self.runner.hidden_size), near_bytes)
        self.runner.embed_(hidden, tokens)
        return Stream(self.runner, hidden)


def _store_outer(checkpoint: Checkpoint, writer: ModelWriter | None) -> None:
    if writer is not None:
        writer.outer(narrowed(checkpoint.tensors(checkpoint.outer_names()), torch.float16))


def _nothing() -> None:
    """What is left to do for a layer that is stored."""


def set_stored_(layer: nn.Module, stored: dict[str, Tensor], n: int) -> None:
    """Makes a layer what its stored tensors stand for."""
    prefix, like = f"model.layers.{n}.", next(layer.parameters())
    tensors = unpacked({name.removeprefix(prefix): tensor.to(like.device) for name, tensor in stored.items()})
    load_into_(layer, tensors, like.dtype, str(like.device))
