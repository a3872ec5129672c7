"""Tensors of a checkpoint by name, read one at a time from safetensors or `.bin` files; nothing is ever unpickled.

`.bin` files go through torch's `weights_only` reader, which builds tensors and refuses everything else.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compress.errors import CompressError, first_line

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


class TensorFiles:
    """Reads tensors by their names on disk; each file is opened once, and a tensor is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._file_of = self._find()

    @property
    def names(self) -> list[str]:
        """Names of all tensors on disk."""
        return list(self._file_of)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's sizes, which are in its file's header."""
        handle = self._handle(self._file_of[name])
        return tuple(handle[name].shape if isinstance(handle, Mapping) else handle.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in its stored type."""
        if name not in self._file_of:
            raise CompressError(f"{self.folder}: tensor {name} is missing; fetch the model again")
        handle = self._handle(self._file_of[name])
        try:
            tensor: Tensor = handle[name] if isinstance(handle, Mapping) else handle.get_tensor(name)
        except (SafetensorError, KeyError) as error:
            raise CompressError(f"{self.file_of(name)}: cannot read {name} ({error}); fetch it again") from None
        return tensor

    def _find(self) -> dict[str, str]:
        for index in INDEXES:
            if (self.folder / index).exists():
                return self._from_index(self.folder / index)
        for single in SINGLE_FILES:
            if (self.folder / single).exists():
                return dict.fromkeys(self._handle(single).keys(), single)
        raise CompressError(f"{self.folder}: no weights; expected one of {', '.join(INDEXES + SINGLE_FILES)}")

    def _from_index(self, index: Path) -> dict[str, str]:
        weight_map: dict[str, str] = json.loads(index.read_text("utf8"))["weight_map"]
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file:
                raise CompressError(f"{index}: names {file}, outside the folder; do not use this checkpoint")
            self._handle(file)
        return weight_map

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = _open(self.folder / file)
        return self._open[file]


def _open(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, "pt")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CompressError(f"{path}: not found; the checkpoint's index names it, fetch the model again") from None
    except Exception as error:
        raise CompressError(f"{path}: damaged or truncated ({first_line(error)}); fetch it again") from None
