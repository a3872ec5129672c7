"""A model folder under canonical names: the configuration, the quantization if any, and its tensors on request."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoint.config import INTERNLM2_CLASS, LayoutName, ModelConfig, parse_config, read_config
from compress.checkpoint.layout import OUTPUT_AXIS, canonical_names, locate, split_wqkv
from compress.checkpoint.model import build_model
from compress.checkpoint.tensor_files import TensorFiles
from compress.errors import CompressError

PACKED = ("qweight", "qzeros", "scales")


class Checkpoint:
    """Reads a model folder of any supported layout, float or AWQ, one tensor at a time.

    Opening it checks that every tensor of the configuration is there and nothing else; no tensor is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        raw = read_config(folder)
        self.config: ModelConfig = parse_config(raw, str(folder / "config.json"))
        self.layout: LayoutName = "internlm2" if raw["architectures"][0] == INTERNLM2_CLASS else "llama"
        self.quantization: dict[str, object] | None = raw.get("quantization_config")
        self._files = TensorFiles(folder)
        self._fused: tuple[str, Tensor] | None = None
        self.names = self._canonical_names()
        self._check_names()

    def tensor(self, name: str) -> Tensor:
        """A canonical tensor on the CPU as it is stored."""
        place = locate(name, self.layout)
        if place.part is None:
            return self._files.read(place.name)
        if self._fused is None or self._fused[0] != place.name:
            self._fused = place.name, self._files.read(place.name)
        axis = OUTPUT_AXIS[place.name.rsplit(".", 1)[1]]
        return split_wqkv(self._fused[1], self.config, axis)[place.part]

    def layer_names(self, layer: int) -> list[str]:
        """Canonical names of one decoder layer's tensors."""
        return sorted(name for name in self.names if name.startswith(f"model.layers.{layer}."))

    def outer_names(self) -> list[str]:
        """Canonical names of the tensors outside the decoder layers."""
        return sorted(name for name in self.names if not name.startswith("model.layers."))

    def tensors(self, names: list[str]) -> dict[str, Tensor]:
        """Some tensors by name; refuses what is not a number."""
        return dict(self._finite(names))

    def _canonical_names(self) -> set[str]:
        names = {n for n in canonical_names(self._files.names, self.layout) if "rotary_emb.inv_freq" not in n}
        return names - {"lm_head.weight"} if self.config.tied else names

    def _finite(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            tensor = self.tensor(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                count = int((~torch.isfinite(tensor)).sum())
                file = self._files.file_of(locate(name, self.layout).name)
                raise CompressError(f"{file}: {name} holds {count} values that are NaN or infinite; use another copy")
            yield name, tensor

    def _check_names(self) -> None:
        expected = expected_names(self.config)
        held = {_unpacked(name) for name in self.names}
        missing, unknown = sorted(expected - held), sorted(held - expected)
        if missing or unknown:
            parts = [
                f"{len(n)} {what} (first: {n[0]})" for n, what in ((missing, "missing"), (unknown, "unknown")) if n
            ]
            raise CompressError(f"{self.folder}: tensors {' and '.join(parts)}; config.json and weights disagree")


def _unpacked(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    return f"{module}.weight" if kind in PACKED else name


def expected_names(config: ModelConfig) -> set[str]:
    """Canonical names of every tensor that a float model of this configuration has."""
    names = set(build_model(config).state_dict())
    return names - {"lm_head.weight"} if config.tied else names
