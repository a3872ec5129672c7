"""What each tensor of a model becomes in a GGUF file: its name, its type, the order of its rows.

llama.cpp turns neighbouring channels of a head (2i, 2i+1) where transformers turns (i, i + half). For its `llama`
architecture the rows of q and k are therefore interleaved here; they carry their codes, scales and zeros with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint, expected_shapes
from compress.checkpoint.config import ModelConfig
from compress.errors import CompressError
from compress.gguf.blocks import Rounded, pack_q4_0, pack_q4_1, require_blocks, rounding
from compress.quantize.formats import awq, compressed_tensors

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
FLOAT_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
EIGHT_BIT_PARTS = ("weight_scale_inv", "scale")


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its canonical name, its name there, its GGML type and its sizes in weights."""

    canonical: str
    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def module(self) -> str:
        return self.canonical.rsplit(".", 1)[0]


def gguf_name(canonical: str) -> str:
    """The name that llama.cpp has for a tensor."""
    module, kind = canonical.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def plan(checkpoint: Checkpoint) -> list[Entry]:
    """Every tensor of the file, layer by layer; refuses what GGUF has no block for."""
    shapes = expected_shapes(checkpoint.config)
    layers = [checkpoint.layer_names(n) for n in range(checkpoint.config.num_layers)]
    order = [name for names in (checkpoint.outer_names(), *layers) for name in _weights(names)]
    return [Entry(name, gguf_name(name), _type(name, checkpoint, shapes[name]), shapes[name]) for name in order]


def _weights(names: list[str]) -> list[str]:
    """A quantized linear's parts as the one weight that they stand for."""
    whole = [name if name.endswith((".weight", ".bias")) else f"{name.rsplit('.', 1)[0]}.weight" for name in names]
    return list(dict.fromkeys(whole))


def _type(name: str, checkpoint: Checkpoint, shape: tuple[int, ...]) -> str:
    module = name.removesuffix(".weight")
    if f"{module}.qweight" in checkpoint.names or f"{module}.weight_zero_point" in checkpoint.names:
        return "Q4_1"
    if f"{module}.weight_packed" in checkpoint.names:
        return "Q4_0"
    if any(f"{module}.{part}" in checkpoint.names for part in EIGHT_BIT_PARTS):
        method = (checkpoint.quantization or {}).get("quant_method")
        remedy = "give a 4-bit variant (format awq or compressed-tensors), or the 16-bit model that it was made from"
        raise CompressError(f"{checkpoint.folder}: {module} is {method}, which GGUF has no block for; {remedy}")
    return "F32" if len(shape) == 1 else FLOAT_TYPES[checkpoint.tensor(name).dtype]


def stored(checkpoint: Checkpoint, entry: Entry) -> tuple[Tensor, Rounded]:
    """What the file has for an entry, and what became of its zeros."""
    of_module = [n for n in checkpoint.names if n.rsplit(".", 1)[0] == entry.module and not n.endswith(".bias")]
    names = [entry.canonical] if entry.canonical in checkpoint.names else sorted(of_module)
    parts = {name.rsplit(".", 1)[1]: tensor for name, tensor in checkpoint.tensors(names).items()}
    return _converted(entry, parts, checkpoint.config)


def _converted(entry: Entry, parts: Mapping[str, Tensor], config: ModelConfig) -> tuple[Tensor, Rounded]:
    rows = row_order(entry.canonical, config)
    if not entry.type.startswith("Q4"):
        (tensor,) = parts.values()
        dtype = next(dtype for dtype, name in FLOAT_TYPES.items() if name == entry.type)
        return (tensor if rows is None else tensor[rows]).to(dtype).contiguous(), Rounded()
    q, grid = (awq if "qweight" in parts else compressed_tensors).unpack_linear(parts)
    require_blocks(q, grid, entry.module)
    if rows is not None:
        q, grid = q[rows], type(grid)(grid.scales[rows], grid.zeros[rows], grid.bits, grid.group_size)
    return (pack_q4_0(q, grid), Rounded()) if entry.type == "Q4_0" else (pack_q4_1(q, grid), rounding(grid))


def row_order(canonical: str, config: ModelConfig) -> Tensor | None:
    """Which row of ours each row of the file is, or None where they are the same."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(canonical.split(".")[-2])
    if heads is None:
        return None
    return torch.arange(heads * config.head_dim).view(heads, 2, -1).transpose(1, 2).flatten()
