"""A whole model in memory from a folder, its quantized linears unpacked to the numbers that they stand for."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.inputs import round_inputs_
from compress.checkpoint.model import build_model
from compress.errors import CompressError
from compress.quantize.formats.stored import format_of


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """The stock transformers model with the folder's weights, ready for inference; computes as the engine does."""
    checkpoint = Checkpoint(folder)
    model = build_model(checkpoint.config)
    for names in (
        checkpoint.outer_names(),
        *(checkpoint.layer_names(n) for n in range(checkpoint.config.num_layers)),
    ):
        load_into_(model, unpacked(checkpoint.tensors(names)), dtype, device)
    model.tie_weights()
    round_inputs_(model, checkpoint)
    return model.to(device)


def unpacked(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float tensors for stored ones: what a format has for a linear becomes one `weight`."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        module, part = name.rsplit(".", 1)
        modules.setdefault(module, {})[part] = tensor
    return {f"{module}.{k}": v for module, parts in modules.items() for k, v in _float_parts(module, parts).items()}


def _float_parts(module: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """A module's tensors with what its format has in place of a weight unpacked."""
    stored = format_of(parts.keys())
    if stored is None:
        return _require_float(module, parts)
    if missing := stored.missing(parts.keys()):
        raise CompressError(f"{module}: {', '.join(missing)} missing beside {stored.mark}; fetch the model again")
    kept = {part: tensor for part, tensor in parts.items() if part not in stored.parts}
    return kept | {"weight": stored.unpacked_weight(parts)}


def _require_float(module: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Codes without their scales are no numbers."""
    for part, tensor in parts.items():
        if tensor.element_size() == 1:
            raise CompressError(f"{module}.{part}: is {tensor.dtype} without scales beside it; fetch the model again")
    return parts


def load_into_(model: torch.nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype, device: str) -> None:
    """Puts tensors into an empty model in place of its parameters of these names."""
    placed = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    unknown = model.load_state_dict(placed, strict=False, assign=True).unexpected_keys
    assert not unknown, unknown
