"""A whole model in memory from a folder, its quantized linears unpacked to the numbers that they stand for."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoint.checkpoint import PACKED, Checkpoint
from compress.checkpoint.model import build_model
from compress.quantize.packing import unpacked_weight


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """The stock transformers model with the folder's weights, ready for inference."""
    checkpoint = Checkpoint(folder)
    model = build_model(checkpoint.config)
    for names in (
        checkpoint.outer_names(),
        *(checkpoint.layer_names(n) for n in range(checkpoint.config.num_layers)),
    ):
        load_into_(model, unpacked(checkpoint.tensors(names)), dtype, device)
    model.tie_weights()
    return model.to(device)


def unpacked(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float tensors for stored ones: AWQ triples become one `weight`."""
    out = {name: tensor for name, tensor in stored.items() if name.rsplit(".", 1)[1] not in PACKED}
    for module in _packed_modules(stored):
        out[f"{module}.weight"] = unpacked_weight({part: stored[f"{module}.{part}"] for part in PACKED})
    return out


def _packed_modules(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]


def load_into_(model: torch.nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype, device: str) -> None:
    """Puts tensors into an empty model in place of its parameters of these names."""
    placed = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    unknown = model.load_state_dict(placed, strict=False, assign=True).unexpected_keys
    assert not unknown, unknown
