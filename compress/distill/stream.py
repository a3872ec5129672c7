"""A model's decoder layers one after another: its final hidden states, and on the way what a loss wants to see.

The layers are run without a mask, which the stock attention reads as causal (windows have no padding): making one would
have the host wait for the device at the start of every pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Seen:
    """The final hidden states, residual streams behind some layers, and outputs of projections in some."""

    final: Float[Tensor, "windows length hidden"]
    residuals: dict[int, Tensor] = field(default_factory=dict)
    projections: dict[tuple[int, str], Tensor] = field(default_factory=dict)


def run(
    model: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    residuals: frozenset[int] = frozenset(),
    projections: frozenset[int] = frozenset(),
    twice: bool = False,
) -> Seen:
    """Windows through the model, with what is asked for of the layers of these numbers.

    `twice`, layers are computed again in the backward pass and remember nothing but their input.
    """
    inner, kept = model.model, {}
    h = inner.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    rope = inner.rotary_emb(h, positions)
    with _listening(inner.layers, projections) as heard:
        for number, layer in enumerate(inner.layers):
            said = {"attention_mask": None, "position_ids": positions, "position_embeddings": rope}
            out = checkpoint(layer, h, use_reentrant=False, **said) if twice else layer(h, **said)
            h = out[0] if isinstance(out, tuple) else out
            if number in residuals:
                kept[number] = h
    return Seen(inner.norm(h), kept, heard)


def final_hidden(model: PreTrainedModel, tokens: Integer[Tensor, "windows length"]) -> Float[Tensor, "..."]:
    """What the output head reads, (windows, length, hidden), by the model's own forward pass."""
    hidden: Tensor = model.model(tokens, use_cache=False).last_hidden_state
    return hidden


@contextmanager
def _listening(layers: nn.ModuleList, numbers: frozenset[int]) -> Iterator[dict[tuple[int, str], Tensor]]:
    heard: dict[tuple[int, str], Tensor] = {}

    def hear(key: tuple[int, str], out: Tensor) -> None:
        heard[key] = out

    hooks = [
        getattr(layers[n].self_attn, name).register_forward_hook(lambda _, __, out, key=(n, name): hear(key, out))
        for n in numbers
        for name in PROJECTIONS
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
