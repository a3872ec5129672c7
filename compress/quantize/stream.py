"""A stock decoder layer up to the input of each set of linears, for windows that wait on the host.

Only the residual stream h of a window is kept, at the layer's start and after its attention; the inputs x of the
linears are computed from it when they are wanted. What waits on the host is no larger than the hidden states, at the
price of computing half of the rounded layer twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.hidden import HiddenStates
from compress.checkpoint.runner import LayerRunner

DecoderLayer = Any  # a stock one; its parts have no types of their own
Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """Computes h and x from h; `moves` where the h that comes out takes the place of the one that went in."""

    compute: Callable[[DecoderLayer, Tensor, Rope], tuple[Tensor, Tensor]]
    moves: bool = False


def _attention_input(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    return h, layer.input_layernorm(h)


def _o_input(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    with _left_out(layer.self_attn, "o_proj"):
        # No mask: the stock attention is causal without one, and windows have no padding.
        return h, layer.self_attn(layer.input_layernorm(h), position_embeddings=rope, attention_mask=None)[0]


def _past_o(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    h, x = _o_input(layer, h, rope)
    return h + layer.self_attn.o_proj(x), x


def _mlp_input(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    return h, layer.post_attention_layernorm(h)


def _past_o_to_mlp(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    return _mlp_input(layer, _past_o(layer, h, rope)[0], rope)


def _down_input(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    with _left_out(layer.mlp, "down_proj"):
        return h, layer.mlp(layer.post_attention_layernorm(h))


def _past_down(layer: DecoderLayer, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    h, x = _down_input(layer, h, rope)
    return h + layer.mlp.down_proj(x), x


# In the order of sites.SITES. The rounded model's linears change behind their site's step, so that it moves late; the
# float model's never change, so that it moves at once.
ROUNDED = Step(_attention_input), Step(_o_input), Step(_past_o_to_mlp, moves=True), Step(_down_input)
FLOATS = Step(_attention_input), Step(_past_o, moves=True), Step(_mlp_input), Step(_past_down, moves=True)
WHOLE_LAYER = Step(_past_o, moves=True), Step(_past_down, moves=True)
LEAVE = WHOLE_LAYER[1]


@contextmanager
def _left_out(parent: nn.Module, name: str) -> Iterator[None]:
    """While this is open, `parent` ends before its linear `name`."""
    linear = parent.get_submodule(name)
    setattr(parent, name, nn.Identity())
    try:
        yield
    finally:
        setattr(parent, name, linear)


def compute(layer: nn.Module, h: Tensor, rope: Rope, *steps: Step) -> Tensor:
    """The residual stream of a batch after some steps."""
    for step in steps:
        h, _ = step.compute(layer, h, rope)
    return h


@dataclass
class Stream:
    """All windows in one model, between two steps."""

    runner: LayerRunner
    hidden: HiddenStates

    @torch.no_grad()
    def through(self, layer: nn.Module, step: Step) -> Iterator[tuple[Tensor, Tensor]]:
        """The h that went in and the x of each batch; where the step moves, the windows stand behind it afterwards."""
        for at, h in self.hidden.batches():
            moved, x = step.compute(layer, h, self.runner.rope(h))
            yield h, x
            if step.moves:  # only now: on the CPU h is where the windows are
                self.hidden.put_(at, moved)

    def move_(self, layer: nn.Module, *steps: Step) -> None:
        """Takes every window through some steps."""
        for step in steps:
            for _ in self.through(layer, step):
                pass
