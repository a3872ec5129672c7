"""The quantizer: calibration windows go through the model once, and each layer is rounded on the way.

Each set of linears is calibrated on what those rounded before it really give, beside what the float model has there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.progress import Progress, silent
from compress.quantize.layer import QuantizedLinear, Walkers, quantize_layer_
from compress.quantize.packing import pack_linear
from compress.quantize.recipe import AwqRecipe
from compress.quantize.stream import Stream


@dataclass(frozen=True)
class LinearError:
    """Relative output error (‖Δy‖² / ‖y‖²) of one quantized linear, with plain rounding's on the same inputs."""

    layer: int
    linear: str
    error: float
    nearest_error: float


def quantize_model(
    checkpoint: Checkpoint,
    tokens: Tensor,
    recipe: AwqRecipe,
    writer: ModelWriter,
    *,
    device: str = "cpu",
    batch: int = 8,
    progress: Progress = silent,
) -> list[LinearError]:
    """Writes the quantized model and returns what each linear lost; `tokens` are the windows (count, length)."""
    runner, errors = LayerRunner(checkpoint, device, batch), []
    embedded = runner.embed(tokens)
    walkers = Walkers(Stream.start(runner, embedded), Stream.start(runner, embedded))
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        layer = runner.load(n)
        linears = quantize_layer_(layer, walkers, checkpoint.config, recipe, f"layers.{n}")
        errors += [LinearError(n, name, linear.error, linear.nearest_error) for name, linear in linears.items()]
        writer.layer(n, _stored(layer, linears, n))
        runner.release(n)
    writer.outer(as_half(checkpoint.tensors(checkpoint.outer_names())))
    writer.close(quantization_config(recipe))
    return errors


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
