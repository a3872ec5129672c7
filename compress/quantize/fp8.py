"""8-bit floating-point weights: every decoder linear to the nearest numbers on its blocks' scales, layer by layer.

A float's error grows with its size, so a scale only decides which few weights become subnormal: searching smaller
scales was tried and changed next to nothing. Everything else is stored in bfloat16, the type in which engines run this
format.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import unpacked
from compress.checkpoint.write import ModelWriter
from compress.progress import Progress, silent
from compress.quantize.formats.fp8 import block_scales, pack_linear, quantization_config, unpacked_weight
from compress.quantize.journal import Journal
from compress.quantize.narrow import narrowed
from compress.quantize.resources import ON_CPU, Resources
from compress.quantize.sites import LINEARS

TORCH_DTYPE = "bfloat16"


@dataclass(frozen=True)
class WeightError:
    """Relative error (‖ΔW‖² / ‖W‖²) of one quantized weight."""

    layer: int
    linear: str
    error: float


def quantize_to_fp8(
    checkpoint: Checkpoint,
    writer: ModelWriter,
    resources: Resources = ON_CPU,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> list[WeightError]:
    """Writes the quantized model and returns what each weight lost; reads one layer at a time.

    With a `journal` whose entries a killed run into the same folder left, it goes on behind the last of them.
    """
    errors: list[WeightError] = []
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        finished = journal.finished(n, writer) if journal else None
        if finished is not None:
            errors += [WeightError(**row) for row in finished[0]]
            continue
        lost, tensors = _quantized(checkpoint, n, resources.device)
        writer.layer(n, tensors)
        if journal:
            journal.finish(n, [asdict(error) for error in lost])
        errors += lost
    writer.outer(narrowed(checkpoint.tensors(checkpoint.outer_names()), torch.bfloat16))
    writer.close(quantization_config())
    return errors


def _quantized(checkpoint: Checkpoint, n: int, device: str) -> tuple[list[WeightError], dict[str, Tensor]]:
    """What the weights of a layer lost, and its canonical tensors."""
    prefix, errors = f"model.layers.{n}.", []
    stored: dict[str, Tensor] = {}
    for name, tensor in unpacked(checkpoint.tensors(checkpoint.layer_names(n))).items():
        linear = name.removeprefix(prefix).removesuffix(".weight")
        if linear in LINEARS:
            W = tensor.to(device).float()
            packed = pack_linear(W, block_scales(W))
            errors.append(WeightError(n, linear, _relative(unpacked_weight(packed) - W, W)))
            stored |= {f"{prefix}{linear}.{part}": value.cpu() for part, value in packed.items()}
        else:
            stored |= narrowed({name: tensor}, torch.bfloat16)
    return sorted(errors, key=lambda error: LINEARS.index(error.linear)), stored


def _relative(delta: Tensor, W: Tensor) -> float:
    power = W.square().sum().clamp(min=torch.finfo(W.dtype).tiny)
    return float(delta.square().sum() / power)
