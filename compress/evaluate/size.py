"""How large a stored model is, read from the headers of its files."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.layout import PACKED
from compress.checkpoint.model import build_model

TYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}


def sizes(folder: Path) -> dict[str, int | float]:
    """`parameters`, `size_bytes` of the tensors on disk, `bits_per_weight` over all, and over the decoder's linears."""
    config = Checkpoint(folder).config
    parameters = build_model(config).num_parameters()
    stored = list(_stored_tensors(folder))
    linear_bytes = sum(size for name, size in stored if _is_linear(name))
    size_bytes = sum(size for _, size in stored)
    return {
        "parameters": parameters,
        "size_bytes": size_bytes,
        "bits_per_weight": 8 * size_bytes / parameters,
        "bits_per_linear_weight": 8 * linear_bytes / _linear_parameters(config),
    }


def _stored_tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and bytes of every tensor in the folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, about in header.items():
            if name != "__metadata__":
                yield name, math.prod(about["shape"]) * TYPE_BYTES[about["dtype"]]


def _is_linear(name: str) -> bool:
    """Whether a tensor belongs to a decoder layer's linear, in either layout: its kernels are what is not a norm."""
    module, kind = name.rsplit(".", 1)
    return ".layers." in name and kind in ("weight", *PACKED) and not module.endswith("norm")


def _linear_parameters(config: ModelConfig) -> int:
    names = build_model(config).named_parameters()
    return sum(p.numel() for name, p in names if ".layers." in name and p.dim() == 2)
