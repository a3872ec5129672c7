"""8-bit floating-point weights: every decoder linear to the nearest numbers on its blocks' scales, layer by layer.

A float's error grows with its size, so a scale only decides which few weights become subnormal: searching smaller
scales was tried and changed next to nothing. Everything else is stored in bfloat16, the type in which engines run this
format.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import unpacked
from compress.checkpoint.write import ModelWriter
from compress.progress import Progress, silent
from compress.quantize.formats.fp8 import block_scales, pack_linear, quantization_config, unpacked_weight
from compress.quantize.narrow import narrowed
from compress.quantize.sites import LINEARS

TORCH_DTYPE = "bfloat16"


@dataclass(frozen=True)
class WeightError:
    """Relative error (‖ΔW‖² / ‖W‖²) of one quantized weight."""

    layer: int
    linear: str
    error: float


def quantize_to_fp8(
    checkpoint: Checkpoint, writer: ModelWriter, *, device: str = "cpu", progress: Progress = silent
) -> list[WeightError]:
    """Writes the quantized model and returns what each weight lost; reads one layer at a time."""
    errors: list[WeightError] = []
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        prefix = f"model.layers.{n}."
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
        writer.layer(n, stored)
    writer.outer(narrowed(checkpoint.tensors(checkpoint.outer_names()), torch.bfloat16))
    writer.close(quantization_config())
    return sorted(errors, key=lambda error: (error.layer, LINEARS.index(error.linear)))


def _relative(delta: Tensor, W: Tensor) -> float:
    power = W.square().sum().clamp(min=torch.finfo(W.dtype).tiny)
    return float(delta.square().sum() / power)
