"""The linears of a quantized model that stay in 16 bits, found by the names that its config.json gives.

TurboMind never reads these names: it goes by the tensors, which lie there as the names say. It joins q, k and v into
one linear, and where only some of the three are in 16 bits it unpacks the others to 16 as well.
"""

import re
from collections.abc import Mapping

from serving.ranks import INTERNLM2
from serving.shape import PATTERN, Shape

QKV = frozenset(("q_proj", "k_proj", "v_proj"))
FEED_FORWARD = frozenset(("gate_proj", "up_proj", "down_proj"))
STOCK_MODULES = {  # of a layer, which linears each module is
    **{f"self_attn.{name}": frozenset((name,)) for name in (*sorted(QKV), "o_proj")},
    **{f"mlp.{name}": frozenset((name,)) for name in sorted(FEED_FORWARD)},
}
INTERNLM2_MODULES = {
    "attention.wqkv": QKV,
    "attention.wo": frozenset(("o_proj",)),
    "feed_forward.w1": frozenset(("gate_proj",)),
    "feed_forward.w3": frozenset(("up_proj",)),
    "feed_forward.w2": frozenset(("down_proj",)),
}
BEFORE = ("model.", "language_model.model.", "model.language_model.")  # a layer's name; the latter two in a whole


def kept_parameters(shape: Shape) -> int:
    """Weights of decoder linears that the engine holds in 16 bits although the model is quantized."""
    if not shape.kept:
        return 0
    sizes = _sizes(shape)
    return sum(sizes[linear] for layer in range(shape.layers) for linear in kept_linears(shape, layer))


def modules(shape: Shape) -> Mapping[str, frozenset[str]]:
    """The quantizable modules of a layer in the layout that the model's architecture has."""
    return INTERNLM2_MODULES if shape.decoder == INTERNLM2 else STOCK_MODULES


def kept_linears(shape: Shape, layer: int) -> frozenset[str]:
    """The linears of a layer that the engine has in 16 bits by these names."""
    found = {
        linear
        for module, linears in modules(shape).items()
        if any(_names(name, f"{part}layers.{layer}.{module}") for part in BEFORE for name in shape.kept)
        for linear in linears
    }
    return frozenset(found | QKV if found & QKV else found)


def _names(said: str, module: str) -> bool:
    """Whether what config.json says means this module: its whole name, or whole parts of it in a row."""
    if said.startswith(PATTERN):
        return re.match(said.removeprefix(PATTERN), module) is not None
    return f".{said}." in f".{module}."


def _sizes(shape: Shape) -> dict[str, int]:
    """Weights of each linear of a layer."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    outputs = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": q} | dict.fromkeys(FEED_FORWARD, shape.inter)
    return {linear: shape.hidden * size for linear, size in outputs.items()}
