"""Small models written in each format, their weights at the nearest points, and what the weights then are."""

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.quantize.formats import fp8, int8
from compress.quantize.formats.int4 import format_named
from compress.quantize.grid import fit_grid, nearest, quantize
from compress.quantize.sites import LINEARS

# A format's name, with the group size where it has groups.
SCHEMES = {
    "awq-128": ("awq", 128),
    "ct-32": ("compressed-tensors", 32),
    "ct-128": ("compressed-tensors", 128),
    "fp8": ("fp8", 128),
    "int8": ("int8", None),
}


def packed(W, scheme):
    """The stored tensors of a weight, and the weight that they stand for."""
    name, group_size = SCHEMES[scheme]
    W = W.float()
    if name == "fp8":
        stored = fp8.pack_linear(W, fp8.block_scales(W))
        return stored, fp8.unpacked_weight(stored)
    if name == "int8":
        stored = int8.pack_linear(W)
        return stored, int8.unpacked_weight(stored)
    grid = fit_grid(W, 4, group_size)
    return format_named(name).pack_linear(quantize(W, grid), grid), nearest(W, grid)


def quantization_config(scheme, kept=()):
    name, group_size = SCHEMES[scheme]
    if name in ("fp8", "int8"):
        return {"fp8": fp8, "int8": int8}[name].quantization_config(kept)
    return format_named(name).quantization_config(group_size, kept)


def write_in_scheme(source, out, scheme, layout, kept=()):
    """Writes the model in a scheme, its linears `kept` (canonical names) in 16 bits; returns its float weights."""
    checkpoint = Checkpoint(source)
    dtype = torch.bfloat16 if scheme == "fp8" else torch.float16
    out.mkdir(parents=True)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype=str(dtype).removeprefix("torch.")), layout)
    expected = {}
    for n in range(checkpoint.config.num_layers):
        stored = {}
        for name, tensor in checkpoint.tensors(checkpoint.layer_names(n)).items():
            module = name.removesuffix(".weight")
            if module.removeprefix(f"model.layers.{n}.") in LINEARS and module not in kept:
                parts, expected[name] = packed(tensor, scheme)
                stored |= {f"{module}.{part}": value for part, value in parts.items()}
            else:
                stored[name] = tensor.to(dtype)
                expected[name] = stored[name].float()
        writer.layer(n, stored)
    outer = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors(checkpoint.outer_names()).items()}
    writer.outer(outer)
    writer.close(quantization_config(scheme, kept))
    return expected | {name: tensor.float() for name, tensor in outer.items()}


def rewrite(folder, out, layout):
    """Writes the same model in another layout."""
    checkpoint = Checkpoint(folder)
    out.mkdir()
    writer = ModelWriter(out, checkpoint.config, layout)
    for n in range(checkpoint.config.num_layers):
        writer.layer(n, checkpoint.tensors(checkpoint.layer_names(n)))
    writer.outer(checkpoint.tensors(checkpoint.outer_names()))
    writer.close(checkpoint.quantization)
