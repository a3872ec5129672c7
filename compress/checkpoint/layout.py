"""How a model's tensors are named and fused on disk: the one place that knows InternLM2's spelling.

InternLM2 is Llama with other names and one fusion: the rows of `wqkv` are (kv_head, q_per_kv + 2, head_dim), for each
kv head its query heads, then the key, then the value. Quantization groups run along the input, so codes, scales and
zeros of a quantized linear are split and joined like rows of the float one: a model goes from one layout to the
other without being quantized again.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from compress.checkpoint.config import LayoutName, ModelConfig
from compress.errors import CompressError

INTERNLM2_NAMES = {
    "model.tok_embeddings": "model.embed_tokens",
    "model.norm": "model.norm",
    "output": "lm_head",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
STOCK_NAMES = {ours: theirs for theirs, ours in INTERNLM2_NAMES.items()}
WQKV = "attention.wqkv"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# The axis of a linear's outputs, by the last part of the tensor's name: a word of codes or zeros may hold eight of
# them, a block scale stands for `BLOCK_ROWS`. The formats themselves are described in compress/quantize/formats.
OUTPUT_AXIS = {"weight": 0, "bias": 0, "qweight": 1, "qzeros": 1, "scales": 1}
OUTPUT_AXIS |= dict.fromkeys(("weight_packed", "weight_scale", "weight_zero_point", "weight_scale_inv", "scale"), 0)
SHAPE = "weight_shape"  # the sizes of an unpacked weight, in a tensor of two numbers
BLOCK_SCALE, BLOCK_ROWS = "weight_scale_inv", 128
PACKED = frozenset(OUTPUT_AXIS) - {"weight", "bias"} | {SHAPE}

_NAME = re.compile(r"(?:(?P<layer>model\.layers\.\d+\.))?(?P<module>.+)\.(?P<kind>[^.]+)")


@dataclass(frozen=True)
class Part:
    """Where a canonical tensor lies: the tensor named `name`, or rows `part` (0 q, 1 k, 2 v) of it."""

    name: str
    part: int | None = None


def split_fused(kind: str, fused: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """What q, k and v have of InternLM2's fused tensor `kind`."""
    if kind == SHAPE:
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        q, k, v = (fused.new_tensor([count * config.head_dim, int(fused[1])]) for count in heads)
        return q, k, v
    _require_whole_blocks(kind, config)
    return split_wqkv(fused, config, OUTPUT_AXIS[kind])


def join_fused(kind: str, q: Tensor, k: Tensor, v: Tensor, config: ModelConfig) -> Tensor:
    """The inverse of `split_fused`."""
    if kind == SHAPE:
        return q.new_tensor([int(q[0] + k[0] + v[0]), int(q[1])])
    _require_whole_blocks(kind, config)
    return join_wqkv(q, k, v, config, OUTPUT_AXIS[kind])


def _require_whole_blocks(kind: str, config: ModelConfig) -> None:
    if kind == BLOCK_SCALE and config.head_dim % BLOCK_ROWS:
        reason = f"blocks of {BLOCK_ROWS} rows span heads of {config.head_dim}"
        raise CompressError(f"wqkv.{kind}: {reason}, and layout internlm2 mixes the heads of q, k and v; use llama")


def split_wqkv(wqkv: Shaped[Tensor, "..."], config: ModelConfig, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each in the order of its own heads, out of InternLM2's fused tensor."""
    q_per_kv = config.num_heads // config.num_kv_heads
    heads = wqkv.movedim(axis, 0).unflatten(0, (config.num_kv_heads, q_per_kv + 2, -1))
    pieces = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]
    q, k, v = (piece.flatten(0, 2).movedim(0, axis).contiguous() for piece in pieces)
    return q, k, v


def join_wqkv(q: Tensor, k: Tensor, v: Tensor, config: ModelConfig, axis: int) -> Shaped[Tensor, "..."]:
    """The inverse of `split_wqkv`."""
    grouped = [t.movedim(axis, 0).unflatten(0, (config.num_kv_heads, -1, _unit(q, config, axis))) for t in (q, k, v)]
    return torch.cat(grouped, dim=1).flatten(0, 2).movedim(0, axis).contiguous()


def _unit(q: Tensor, config: ModelConfig, axis: int) -> int:
    """Entries of one head along `axis`: head_dim, or an eighth of it where words hold eight outputs."""
    return q.shape[axis] // config.num_heads


def locate(name: str, layout: LayoutName) -> Part:
    """Where the canonical tensor `name` lies in a checkpoint of this layout."""
    if layout == "llama":
        return Part(name)
    layer, module, kind = _parse(name)
    if module in QKV:
        return Part(f"{layer}{WQKV}.{kind}", QKV.index(module))
    return Part(f"{layer}{_rename(module, STOCK_NAMES, name)}.{kind}")


def canonical_names(names: Iterable[str], layout: LayoutName) -> list[str]:
    """The canonical tensors that a checkpoint with these tensors holds, in the order given."""
    if layout == "llama":
        return list(names)
    found: list[str] = []
    for name in names:
        layer, module, kind = _parse(name)
        modules = QKV if module == WQKV else (_rename(module, INTERNLM2_NAMES, name),)
        found += [f"{layer}{m}.{kind}" for m in modules]
    return found


def to_layout(tensors: Mapping[str, Tensor], config: ModelConfig, layout: LayoutName) -> dict[str, Tensor]:
    """The same tensors under a layout's names; q, k and v of a layer come together or not at all."""
    if layout == "llama":
        return dict(tensors)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, module, kind = _parse(name)
        if module == QKV[0]:
            q, k, v = (_alike(tensors, f"{layer}{part}.{kind}") for part in QKV)
            out[f"{layer}{WQKV}.{kind}"] = join_fused(kind, q, k, v, config)
        elif module not in QKV:
            out[f"{layer}{_rename(module, STOCK_NAMES, name)}.{kind}"] = tensor
    return out


def from_layout(tensors: Mapping[str, Tensor], config: ModelConfig, layout: LayoutName) -> dict[str, Tensor]:
    """The inverse of `to_layout`."""
    if layout == "llama":
        return dict(tensors)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, module, kind = _parse(name)
        if module == WQKV:
            parts = split_fused(kind, tensor, config)
            out |= {f"{layer}{part}.{kind}": value for part, value in zip(QKV, parts, strict=True)}
        else:
            out[f"{layer}{_rename(module, INTERNLM2_NAMES, name)}.{kind}"] = tensor
    return out


def _alike(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CompressError(
            f"{name}: q, k and v are not all quantized alike, and layout internlm2 fuses them; use llama"
        )
    return tensors[name]


def modules_in_layout(modules: Iterable[str], layout: LayoutName) -> list[str]:
    """Modules under a layout's names, each once."""
    places = (locate(f"{module}.weight", layout).name.removesuffix(".weight") for module in modules)
    return list(dict.fromkeys(places))


def canonical_modules(modules: Iterable[str], layout: LayoutName) -> list[str]:
    """The inverse of `modules_in_layout`: of a fused module, its parts."""
    names = canonical_names((f"{module}.weight" for module in modules), layout)
    return [name.removesuffix(".weight") for name in names]


def _parse(name: str) -> tuple[str, str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise CompressError(f"tensor {name}: not a module's tensor; is this a language model's checkpoint?")
    return match["layer"] or "", match["module"], match["kind"]


def _rename(module: str, table: Mapping[str, str], name: str) -> str:
    if module not in table:
        raise CompressError(f"tensor {name}: InternLM2 has no such module; use layout: llama for this model")
    return table[module]
