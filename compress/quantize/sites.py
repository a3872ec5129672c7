"""The four sets of linears in a decoder layer that share an input, and what that input's scales fold into.

Folding multiplies the columns of the set by s and divides the producer of its input by s: a norm's weight, or the rows
of the linear before. With grouped-query attention a row of v feeds one o-channel of every query head in its group, so
those channels share one scale.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.checkpoint.config import ModelConfig


@dataclass(frozen=True)
class Site:
    """Linears of one input, and the module before that absorbs their scales; names within the decoder layer."""

    linears: tuple[str, ...]
    producer: str
    writes_residual: bool = False

    @property
    def key(self) -> str:
        """The linear at whose input statistics are taken."""
        return self.linears[0]

    def rows(self, layer: nn.Module) -> dict[str, slice]:
        """Where each linear's outputs lie in the joined weight."""
        ends = list(accumulate(layer.get_parameter(f"{name}.weight").shape[0] for name in self.linears))
        return {name: slice(a, b) for name, a, b in zip(self.linears, [0, *ends], ends, strict=False)}


SITES = (
    Site(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Site(("self_attn.o_proj",), "self_attn.v_proj", writes_residual=True),
    Site(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    Site(("mlp.down_proj",), "mlp.up_proj", writes_residual=True),
)
LINEARS = tuple(linear for site in SITES for linear in site.linears)


def joined_weight(layer: nn.Module, site: Site) -> Float[Tensor, "out in_features"]:
    """The weights of a site's linears, one above the other, in float32."""
    return torch.cat([layer.get_parameter(f"{name}.weight").data for name in site.linears]).float()


def tie_for(site: Site, config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """How the site's channels must share scales: the identity but for o under grouped-query attention."""
    if site.producer != "self_attn.v_proj":
        return lambda s: s
    heads = (config.num_kv_heads, -1, config.head_dim)

    def tie(s: Tensor) -> Tensor:
        grouped = s.unflatten(0, heads)
        return grouped.mean(1, keepdim=True).expand_as(grouped).flatten()

    return tie


def producer_divisor(site: Site, s: Float[Tensor, " in_features"], config: ModelConfig) -> Float[Tensor, " produced"]:
    """What each output of the site's producer is divided by, so that the site's input is divided by s."""
    if site.producer != "self_attn.v_proj":
        return s
    return s.unflatten(0, (config.num_kv_heads, -1, config.head_dim))[:, 0].flatten()


def divide_(producer: nn.Module, divisor: Float[Tensor, " produced"]) -> None:
    """Divides each output of a norm or linear, its bias with it."""
    for parameter in producer.parameters():
        parameter.data.div_(divisor if parameter.dim() == 1 else divisor[:, None])
