"""A folder's model written as one GGUF file: no number is quantized again."""

import importlib.util
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.errors import CompressError
from compress.gguf.blocks import Rounded
from compress.gguf.facts import Rope, require_family, rope, write_facts
from compress.gguf.tensors import Entry, plan, stored
from compress.gguf.vocabulary import read_vocabulary, write_vocabulary
from compress.progress import Progress, silent

SOURCE = "turbopress.artifact"  # whose digest made the file


@dataclass(frozen=True)
class Written:
    """What lies in the file: bits a weight in the decoder's linears and in all, tensors by type, what float16 moved."""

    bits_per_linear_weight: float
    bits_per_weight: float
    types: dict[str, int]
    context: int
    rounded: Rounded
    note: str | None


def export(source: Path, file: Path, name: str, digest: str | None = None, progress: Progress = silent) -> Written:
    """Writes the model of `source`, float or 4-bit in any layout, to `file`; equal inputs give equal bytes."""
    require_gguf()
    from gguf import GGUFWriter  # noqa: PLC0415 - an extra

    checkpoint = Checkpoint(source)
    place = str(source / "config.json")
    require_family(checkpoint.config, place)
    turned, entries = rope(checkpoint.config, place), plan(checkpoint)
    writer = GGUFWriter(file, checkpoint.config.family)
    try:
        writer.add_name(name)
        if digest is not None:
            writer.add_string(SOURCE, digest)
        write_facts(writer, checkpoint.config, turned, place)
        _tokenizer(writer, source, int(checkpoint.config.fields["vocab_size"]))
        rounded = _tensors(writer, checkpoint, entries, progress)
    finally:
        writer.close()
    return _summary(entries, turned, rounded)


def require_gguf() -> None:
    """Refuses where the library that writes the format is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise CompressError("gguf: not installed; pip install 'turbopress[gguf]'")


def _tokenizer(writer: Any, source: Path, size: int) -> None:
    with TemporaryDirectory() as clean:
        write_tokenizer(source, Path(clean))
        try:
            vocabulary = read_vocabulary(Path(clean), size)
        except CompressError as error:
            raise CompressError(str(error).replace(clean, str(source))) from None
    write_vocabulary(writer, vocabulary)


def _tensors(writer: Any, checkpoint: Checkpoint, entries: list[Entry], progress: Progress) -> Rounded:
    from gguf import GGML_QUANT_VERSION  # noqa: PLC0415 - an extra

    writer.add_file_type(_file_type(entries))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for entry in entries:
        kind = _kind(entry.type)
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), _size_bytes(entry), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rounded = Rounded()
    for entry in progress(entries, "tensor"):
        tensor, moved = stored(checkpoint, entry)
        writer.write_tensor_data(tensor.flatten().view(torch.uint8).numpy())
        rounded += moved
    return rounded


def _kind(name: str) -> Any:
    from gguf import GGMLQuantizationType  # noqa: PLC0415 - an extra

    return GGMLQuantizationType[name]


def _size_bytes(entry: Entry) -> int:
    from gguf.quants import quant_shape_to_byte_shape  # noqa: PLC0415 - an extra

    return prod(quant_shape_to_byte_shape(entry.shape, _kind(entry.type)))


def _file_type(entries: list[Entry]) -> int:
    """llama.cpp's number for files of the type that most weights of the linears have."""
    from gguf import LlamaFileType  # noqa: PLC0415 - an extra

    weights = _by_type(_linears(entries))
    most = max(weights, key=lambda name: weights[name])
    return int(LlamaFileType.ALL_F32 if most == "F32" else LlamaFileType[f"MOSTLY_{most}"])


def _summary(entries: list[Entry], turned: Rope, rounded: Rounded) -> Written:
    linears = _bits(_linears(entries))
    return Written(linears, _bits(entries), _by_type(entries), turned.context, rounded, turned.note)


def _linears(entries: list[Entry]) -> list[Entry]:
    """The decoder's linears, without their biases."""
    return [entry for entry in entries if len(entry.shape) == 2 and entry.name.startswith("blk.")]


def _by_type(entries: list[Entry]) -> dict[str, int]:
    """Weights of each type."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.type] = counts.get(entry.type, 0) + prod(entry.shape)
    return counts


def _bits(entries: list[Entry]) -> float:
    return 8 * sum(map(_size_bytes, entries)) / sum(prod(entry.shape) for entry in entries)
