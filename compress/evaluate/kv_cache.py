"""The engine's quantized KV cache, simulated: what attention reads is what was stored in 8 or 4 bits.

Each token's key, after its rotation, and its value are rounded in each head on their own: the least number becomes 0,
the greatest 2^bits − 1, and both the step and the least are kept in 16 bits. So TurboMind does it, and it reads its own
prompt through the cache too, so one forward pass over a window is what the engine computes.
"""

# x (…, head_dim) a key or value of one head · s step · z least number; x ≈ q · s + z, q in 0 … 2^bits − 1

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def rounded(x: Float[Tensor, "*heads head_dim"], bits: int) -> Float[Tensor, "*heads head_dim"]:
    """x as the cache gives it back."""
    least, greatest = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    s = ((greatest - least) / (2**bits - 1)).half().float()
    z = least.half().float()
    q = ((x.float() - z) / s.clamp(min=torch.finfo(torch.float16).tiny)).round().clamp(0, 2**bits - 1)
    return (q * s + z).to(x.dtype)


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers has no types here
    """One layer's keys and values."""

    bits: int

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the new ones rounded."""
        keys, values = rounded(key_states, self.bits), rounded(value_states, self.bits)
        stored: tuple[Tensor, Tensor] = super().update(keys, values, *args, **kwargs)
        return stored


class _Layer8(_Layer):
    bits = 8


class _Layer4(_Layer):
    bits = 4


LAYERS = {8: _Layer8, 4: _Layer4}


def quantized_cache(bits: int) -> Cache:
    """An empty cache of 8 or 4 bits for a model's `forward`, whose fourth argument it is."""
    return Cache(layer_class_to_replicate=LAYERS[bits])


def cached_hidden(model: PreTrainedModel, tokens: Integer[Tensor, "windows length"], bits: int) -> Tensor:
    """What the output head reads when attention reads a cache of so many bits."""
    cache = quantized_cache(bits)  # given by its place: transformers 5.24 has renamed it
    hidden: Tensor = model.model(tokens, None, None, cache, use_cache=True).last_hidden_state
    return hidden
