"""A 4-bit model in training, and back: read from its folder with trainable linears, written in the very same format."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_into_
from compress.checkpoint.model import build_model
from compress.checkpoint.write import ModelWriter
from compress.distill.fake_linear import FakeLinear
from compress.distill.moving import moving_, share_
from compress.distill.repair import Repair
from compress.errors import CompressError
from compress.quantize.formats.int4 import Int4Format, format_named
from compress.quantize.formats.stored import format_of
from compress.quantize.schemes import Int4FormatName

Parts = Mapping[str, Tensor]
ENDS = ("model.embed_tokens", "lm_head")


def load_quantized(folder: Path, train: Repair, device: str = "cpu") -> PreTrainedModel:
    """The stock model, its 4-bit linears in training; scales and norms, and codes if `train` says so, are trainable."""
    checkpoint = Checkpoint(folder)
    stored_as, model = stored_format(checkpoint), build_model(checkpoint.config)
    norms: dict[str, torch.dtype] = {}
    ends: dict[str, torch.dtype] = {}
    for names in _pieces(checkpoint):
        floats: dict[str, Tensor] = {}
        for module, parts in _by_module(checkpoint.tensors(names)).items():
            if format_of(parts.keys()) is not None:
                model.set_submodule(module, _in_training(parts, stored_as, train))
            else:
                floats |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
            if _is_norm(parts):
                norms[module] = parts["weight"].dtype
            if module in ENDS:
                ends[module] = parts["weight"].dtype
        load_into_(model, floats, torch.float32, device)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("parametrizations." in name or name.endswith(".latents"))
    for module, dtype in norms.items():
        moving_(model.get_submodule(module), "weight", dtype)
    if train.embeddings is not None:
        _free_ends_(model, ends, train.embeddings)
    return model.to(device)


def write_quantized(model: PreTrainedModel, folder: Path, out: Path) -> None:
    """Writes what training has made of the model in `folder`: what was not trained keeps its bytes."""
    checkpoint = Checkpoint(folder)
    stored_as, writer = stored_format(checkpoint), ModelWriter(out, checkpoint.config, checkpoint.layout)
    for n in range(checkpoint.config.num_layers):
        writer.layer(n, _trained(model, checkpoint.tensors(checkpoint.layer_names(n)), stored_as))
    writer.outer(_trained(model, checkpoint.tensors(checkpoint.outer_names()), stored_as))
    writer.close(checkpoint.quantization)


def stored_format(checkpoint: Checkpoint) -> Int4Format:
    """The format of the folder's linears, if it is one of 4-bit codes; another is refused."""
    said = (checkpoint.quantization or {}).get("quant_method", "16 bits")
    for name in get_args(Int4FormatName):
        if said == name:
            return format_named(name)
    known = " or ".join(get_args(Int4FormatName))
    raise CompressError(f"{checkpoint.folder}: is in {said}, and only 4 bits in {known} are repaired; remove train")


def _free_ends_(model: PreTrainedModel, ends: Mapping[str, torch.dtype], rate: float) -> None:
    """Makes embeddings and head trainable; a head that is the embeddings stays that."""
    for module, dtype in ends.items():
        moving_(model.get_submodule(module), "weight", dtype, rate)
    if "lm_head" not in ends:
        share_(model.get_submodule(ENDS[0]), model.get_submodule(ENDS[1]), "weight")


def _pieces(checkpoint: Checkpoint) -> list[list[str]]:
    """Names of tensors, as many as are read at a time."""
    layers = range(checkpoint.config.num_layers)
    return [checkpoint.outer_names(), *(checkpoint.layer_names(n) for n in layers)]


def _by_module(tensors: Parts) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, part = name.rsplit(".", 1)
        modules.setdefault(module, {})[part] = tensor
    return modules


def _is_norm(parts: Parts) -> bool:
    """Whether a module is a norm: its weight has one axis."""
    return "weight" in parts and parts["weight"].dim() == 1


def _in_training(parts: Parts, stored_as: Int4Format, train: Repair) -> FakeLinear:
    q, grid = stored_as.unpack_linear(parts)
    bias = parts.get("bias")
    (dtype,) = (tensor.dtype for part, tensor in parts.items() if part != "bias" and tensor.is_floating_point())
    return FakeLinear(q, grid, dtype, bias, train)


def _trained(model: PreTrainedModel, tensors: Parts, stored_as: Int4Format) -> dict[str, Tensor]:
    """The same tensors, in the same types, as training left them."""
    made: dict[str, Tensor] = {}
    for module, parts in _by_module(tensors).items():
        trained = model.get_submodule(module)
        now: Parts = {}
        if isinstance(trained, FakeLinear):
            now = stored_as.pack_linear(trained.codes(), trained.grid())
        elif module in ENDS or _is_norm(parts):
            now = {"weight": trained.weight}
        made |= {f"{module}.{part}": now.get(part, was).detach().cpu().to(was.dtype) for part, was in parts.items()}
    return made
