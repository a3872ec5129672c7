"""The quantizer: calibration windows go through the model once, and each layer is rounded on the way.

Each set of linears is calibrated on what those rounded before it really give, beside what the float model has there.
A walk over a folder where another was killed takes up its layers and ends in the same bytes.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_into_, unpacked
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.progress import Progress, silent
from compress.quantize.journal import Journal
from compress.quantize.layer import LayerQuantizer, QuantizedLinear, set_weight_
from compress.quantize.learner import Learner
from compress.quantize.packing import pack_linear
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.resources import Resources
from compress.quantize.stream import LEAVE, WHOLE_LAYER, Stream

Store = Callable[[], None]
ON_CPU = Resources()


@dataclass(frozen=True)
class LinearError:
    """Relative output error (‖Δy‖² / ‖y‖²) of one quantized linear, with plain rounding's on the same inputs.

    Where rounding was learned, a further row `layer` says it of what the layer adds, after and before the training.
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
) -> list[LinearError]:
    """Writes the quantized model and returns what each linear lost.

    With a `journal` whose entries a killed walk into the same folder left, it goes on behind the last of them.
    """
    errors: list[LinearError] = []
    with resources.products(), ThreadPoolExecutor(1) as background:
        stored = background.submit(_store_outer, checkpoint, writer if resources.workers.rank == 0 else None)
        walk = _Walk(checkpoint, recipe, writer, resources, resources.workers.share(tokens), journal)
        for n in progress(range(checkpoint.config.num_layers), "layer"):
            lost, store = walk.step(n)
            errors += lost
            stored.result()  # one layer waits to be written at most, and what fails there fails here
            stored = background.submit(store)
        stored.result()
    if resources.workers.rank == 0:
        writer.close(quantization_config(recipe))
    return errors


class _Walk:
    """Where the windows stand in both models, and what makes of a layer its quantized tensors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: AwqRecipe,
        writer: ModelWriter,
        resources: Resources,
        tokens: Tensor,
        journal: Journal | None,
    ) -> None:
        self.writer, self.resources, self.journal = writer, resources, journal
        self.runner = LayerRunner(
            checkpoint, resources.device, resources.batch, resources.dtype, prefetch=resources.prefetch
        )
        self.rounded = self._embedded(tokens)
        self.floats = self._embedded(tokens) if recipe.feedback else None
        self.quantizer = LayerQuantizer(recipe, checkpoint.config, resources.workers, self.rounded, self.floats)
        self.learner = (
            Learner(recipe, recipe.rounding, resources, self.rounded, self.floats)
            if isinstance(recipe.rounding, Learned)
            else None
        )

    def step(self, n: int) -> tuple[list[LinearError], Store]:
        """Takes the windows through layer n; returns what was lost in it, and what stores it."""
        original = self.runner.load(n)
        layer = copy.deepcopy(original)
        noted = self.journal.entry(n) if self.journal is not None and self.writer.has_layer(n) else None
        if noted is not None:
            _set_stored_(layer, self.writer.stored_layer(n), n)
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
        linears = self.quantizer.round_(layer, original, f"layers.{n}")
        errors = [LinearError(n, name, linear.error, linear.nearest_error) for name, linear in linears.items()]
        if self.learner is None:
            self.rounded.move_(layer, LEAVE)
        else:
            linears, start, error = self.learner.learn(layer, original, linears, seed=n)
            errors.append(LinearError(n, "layer", error, start))
            for name, linear in linears.items():
                set_weight_(layer, name, linear)
            self.learner.return_()
            self.rounded.move_(layer, *WHOLE_LAYER)
        return errors, _stored(layer, linears, n)

    def _store(self, n: int, tensors: dict[str, Tensor], errors: list[LinearError]) -> None:
        if self.resources.workers.rank == 0:
            self.writer.layer(n, tensors)
            if self.journal is not None:
                self.journal.finish(n, [asdict(error) for error in errors])

    def _embedded(self, tokens: Tensor) -> Stream:
        hidden = self.resources.room((*tokens.shape, self.runner.hidden_size))
        self.runner.embed_(hidden, tokens)
        return Stream(self.runner, hidden)


def _store_outer(checkpoint: Checkpoint, writer: ModelWriter | None) -> None:
    if writer is not None:
        writer.outer(as_half(checkpoint.tensors(checkpoint.outer_names())))


def _nothing() -> None:
    """What is left to do for a layer that is stored."""


def _set_stored_(layer: nn.Module, stored: dict[str, Tensor], n: int) -> None:
    """Makes a layer what its stored tensors stand for."""
    prefix, like = f"model.layers.{n}.", next(layer.parameters())
    tensors = unpacked({name.removeprefix(prefix): tensor.to(like.device) for name, tensor in stored.items()})
    load_into_(layer, tensors, like.dtype, str(like.device))


def quantization_config(recipe: AwqRecipe) -> dict[str, object]:
    """What `config.json` says of the format; engines read the format and nothing of how it was found."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "zero_point": True,
    }


def _stored(layer: nn.Module, linears: dict[str, QuantizedLinear], n: int) -> dict[str, Tensor]:
    """Canonical tensors of a quantized layer."""
    packed = {f"{name}.{k}": v for name, lin in linears.items() for k, v in pack_linear(lin.q, lin.grid).items()}
    kept = {name: p.data for name, p in layer.named_parameters() if name.removesuffix(".weight") not in linears}
    return {f"model.layers.{n}.{name}": t.cpu() for name, t in (packed | as_half(kept)).items()}


def as_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float16 copies; a value that float16 cannot hold is refused."""
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    for name, half in halves.items():
        if not torch.isfinite(half).all():
            largest = float(tensors[name].abs().max())
            raise CompressError(
                f"{name}: {largest:.3g} exceeds float16's 65504; this model cannot be served in float16"
            )
    return halves
