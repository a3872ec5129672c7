"""Writing a model folder in any layout: one shard a decoder layer, an index, `config.json`.

A shard a layer makes the number of shards known before the first is written, keeps at most one layer in memory, and
lets a layer walk read and write whole files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoint.config import LayoutName, ModelConfig, internlm2_fields
from compress.checkpoint.layout import from_layout, to_layout
from compress.checkpoint.quantization import in_layout
from compress.checkpoint.whole_file import write_whole
from compress.errors import CompressError, first_line


class ModelWriter:
    """Writes a model's tensors, given under canonical names a layer at a time, into a fresh folder."""

    def __init__(self, folder: Path, config: ModelConfig, layout: LayoutName) -> None:
        self.folder, self.config, self.layout = folder, config, layout
        self._file_of: dict[str, str] = {}
        self._size_bytes = 0

    def layer(self, layer: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes one decoder layer."""
        self._shard(layer + 1, tensors)

    def has_layer(self, layer: int) -> bool:
        """Whether a decoder layer lies in the folder."""
        return (self.folder / self._file(layer + 1)).exists()

    def stored_layer(self, layer: int) -> dict[str, Tensor]:
        """A decoder layer that is written already, by a run before this one perhaps, under canonical names."""
        path = self.folder / self._file(layer + 1)
        try:
            named = load_file(path)
        except Exception as error:
            raise CompressError(f"{path}: damaged ({first_line(error)}); remove the folder and run again") from None
        self._note(path.name, named)
        return from_layout(named, self.config, self.layout)

    def outer(self, tensors: Mapping[str, Tensor]) -> None:
        """Writes everything outside the decoder layers: the embeddings first, the final norm and head last."""
        first = {name: tensor for name, tensor in tensors.items() if "embed_tokens" in name}
        self._shard(0, first)
        self._shard(self.config.num_layers + 1, {k: v for k, v in tensors.items() if k not in first})

    def close(self, quantization: Mapping[str, Any] | None = None) -> None:
        """Writes the index and `config.json`; the folder is then a whole model.

        `quantization` names modules as the tensors were named: canonically.
        """
        index = {
            "metadata": {"total_size": self._size_bytes},
            "weight_map": dict(sorted(self._file_of.items())),
        }
        write_json(self.folder / "model.safetensors.index.json", index)
        fields = dict(self.config.fields)
        if self.layout == "internlm2":
            fields = internlm2_fields(self.config, str(self.folder))
        fields.pop("quantization_config", None)
        extra = {"quantization_config": in_layout(quantization, self.layout)} if quantization else {}
        write_json(self.folder / "config.json", dict(sorted(fields.items())) | extra)

    def _shard(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        named, path = to_layout(tensors, self.config, self.layout), self.folder / self._file(number)
        write_whole(path, named, {"format": "pt"})
        self._note(path.name, named)

    def _file(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self.config.num_layers + 2:05d}.safetensors"

    def _note(self, file: str, named: Mapping[str, Tensor]) -> None:
        self._file_of |= dict.fromkeys(named, file)
        self._size_bytes += sum(t.numel() * t.element_size() for t in named.values())


def write_json(path: Path, value: object) -> None:
    """JSON with a final newline, keys in the order given."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf8")


def write_model(model: PreTrainedModel, config: ModelConfig, folder: Path) -> None:
    """Writes a whole model in the stock layout, in the type that `config` names."""
    dtype = getattr(torch, config.fields["torch_dtype"])
    state = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    if config.tied:
        del state["lm_head.weight"]
    writer = ModelWriter(folder, config, "llama")
    for n in range(config.num_layers):
        writer.layer(n, {name: t for name, t in state.items() if name.startswith(f"model.layers.{n}.")})
    writer.outer({name: t for name, t in state.items() if not name.startswith("model.layers.")})
    writer.close()
