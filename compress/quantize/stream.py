"""A stock decoder layer in steps from one set of linears to the next, for windows that wait on the host in between.

Between two steps a window is its residual stream h and the input x of the linears that come next. Every linear runs
once: the layer is never run again to see what rounding an earlier linear did to the inputs of a later one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.checkpoint.runner import Hidden, LayerRunner

DecoderLayer = Any  # a stock one; its parts have no types of their own
Rope = tuple[Tensor, Tensor]
Step = Callable[[DecoderLayer, Tensor, Tensor, Rope], tuple[Tensor, Tensor]]


def _to_attention(layer: DecoderLayer, h: Tensor, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    return h, layer.input_layernorm(h)


def _to_o(layer: DecoderLayer, h: Tensor, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    with _left_out(layer.self_attn, "o_proj"):
        return h, layer.self_attn(x, position_embeddings=rope, attention_mask=None)[0]


def _to_mlp(layer: DecoderLayer, h: Tensor, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    h = h + layer.self_attn.o_proj(x)
    return h, layer.post_attention_layernorm(h)


def _to_down(layer: DecoderLayer, h: Tensor, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    with _left_out(layer.mlp, "down_proj"):
        return h, layer.mlp(x)


def _to_next_layer(layer: DecoderLayer, h: Tensor, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    h = h + layer.mlp.down_proj(x)
    return h, h


STEPS: tuple[Step, ...] = (_to_attention, _to_o, _to_mlp, _to_down)  # in the order of sites.SITES


@contextmanager
def _left_out(parent: nn.Module, name: str) -> Iterator[None]:
    """While this is open, `parent` ends before its linear `name`."""
    linear = parent.get_submodule(name)
    setattr(parent, name, nn.Identity())
    try:
        yield
    finally:
        setattr(parent, name, linear)


@dataclass
class Stream:
    """All windows between two steps, on the host."""

    runner: LayerRunner
    h: Hidden
    x: Float[Tensor, "windows length in_features"]

    @classmethod
    def start(cls, runner: LayerRunner, h: Hidden) -> "Stream":
        """The windows as the first layer sees them."""
        return cls(runner, h, h)

    def advance_(self, layer: nn.Module, step: Step) -> None:
        """Takes every window through one step."""
        batches = zip(self.h.split(self.runner.batch), self.x.split(self.runner.batch), strict=True)
        h, x = zip(*(self._moved(layer, step, *batch) for batch in batches), strict=True)
        self.h, self.x = torch.cat(h), torch.cat(x)

    def leave_(self, layer: nn.Module) -> None:
        """Takes every window out of the layer."""
        self.advance_(layer, _to_next_layer)

    @torch.no_grad()
    def _moved(self, layer: nn.Module, step: Step, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h, x = h.to(self.runner.device), x.to(self.runner.device)
        h, x = step(layer, h, x, self.runner.rope(h))
        return h.cpu(), x.cpu()
