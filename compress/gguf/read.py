"""The weights of a GGUF file that `write.export` wrote, back under canonical names: the numbers that llama.cpp sees."""

from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.gguf.blocks import BLOCK, unpack_q4_0, unpack_q4_1
from compress.gguf.tensors import Entry, plan, row_order
from compress.gguf.write import require_gguf

SYMMETRIC_ZERO = 8


def read_weights(file: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of the file in float32; `checkpoint` is the folder that it was written from."""
    require_gguf()
    from gguf import GGUFReader  # noqa: PLC0415 - an extra

    held = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    return {entry.canonical: _weight(held[entry.name].data, entry, checkpoint) for entry in plan(checkpoint)}


def _weight(data: object, entry: Entry, checkpoint: Checkpoint) -> Tensor:
    weight = unpacked(torch.tensor(data), entry)
    rows = row_order(entry.canonical, checkpoint.config)
    return weight if rows is None else weight[rows.argsort()]


def unpacked(stored: Tensor, entry: Entry) -> Tensor:
    """What the bytes of an entry stand for, in the file's order of rows."""
    if entry.type == "Q4_1":
        q, step, least = unpack_q4_1(stored)
        return (q.unflatten(1, (-1, BLOCK)).float() * step.float()[..., None] + least.float()[..., None]).flatten(1)
    if entry.type == "Q4_0":
        q, step = unpack_q4_0(stored)
        return ((q.unflatten(1, (-1, BLOCK)).float() - SYMMETRIC_ZERO) * step.float()[..., None]).flatten(1)
    plain = stored.view(torch.bfloat16) if entry.type == "BF16" else stored  # numpy knows no bfloat16
    return plain.float()
