"""Undoing what a quantizer folded: a variant's weights in its parent's coordinates.

Scales are folded across modules: columns are multiplied by s, and the norm or the rows that produce the input are
divided by it. So the stored weights of one linear are not to be compared with the parent's before s is known. For
(q, k, v) and (gate, up) it is the ratio of the stored norms, to float16's last digit. For o and down it is fitted to
each column, as the multiple of the parent's column that is nearest: rounding moves it by about its error over the
square root of the column's length. Where nothing was folded, s comes out as one.
"""

# W, V (out, in) the parent's and the variant's weight · s (in,) the scale of an input · r (out,) that of the rows

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.checkpoint.config import ModelConfig
from compress.quantize.sites import SITES


@dataclass(frozen=True)
class Fold:
    """What a linear's columns were multiplied by and its rows divided by."""

    s: Float[Tensor, " in_features"]
    r: Float[Tensor, " out_features"]

    def undone(self, V: Float[Tensor, "out_features in_features"]) -> Float[Tensor, "out_features in_features"]:
        """The variant's weight as it would be, had nothing been folded."""
        return V * self.r[:, None] / self.s

    def done(self, W: Float[Tensor, "out_features in_features"]) -> Float[Tensor, "out_features in_features"]:
        """The parent's weight as the variant's rounding saw it."""
        return W * self.s / self.r[:, None]


def folds(parent: nn.Module, variant: nn.Module, config: ModelConfig) -> dict[str, Fold]:
    """The fold of each linear of a layer."""
    scales = {site.key: _scale(parent, variant, site.producer, site.key, config) for site in SITES}
    produced = {site.producer: _rows(scales[site.key], site.producer, config) for site in SITES}
    return {
        name: Fold(scales[site.key], produced.get(name, torch.ones_like(_weight(parent, name)[:, 0])))
        for site in SITES
        for name in site.linears
    }


def _scale(parent: nn.Module, variant: nn.Module, producer: str, key: str, config: ModelConfig) -> Tensor:
    W, V = _weight(parent, producer), _weight(variant, producer)
    if W.dim() == 1:
        return torch.where(V == 0, torch.ones_like(V), W / V)
    s = _fitted(_weight(parent, key), _weight(variant, key))
    return _tied(s, config) if producer == "self_attn.v_proj" else s


def _fitted(W: Tensor, V: Tensor) -> Float[Tensor, " in_features"]:
    """For each column the multiple of W's that is nearest to V's."""
    power = W.square().sum(0)
    fitted = (V * W).sum(0) / power.clamp(min=torch.finfo(W.dtype).tiny)
    return torch.where((power == 0) | (fitted <= 0), torch.ones_like(fitted), fitted)


def _tied(s: Tensor, config: ModelConfig) -> Tensor:
    """Channels of o that read one row of v have one scale."""
    heads = s.unflatten(0, (config.num_kv_heads, -1, config.head_dim))
    return heads.mean(1, keepdim=True).expand_as(heads).flatten()


def _rows(s: Tensor, producer: str, config: ModelConfig) -> Tensor:
    if producer != "self_attn.v_proj":
        return s
    return s.unflatten(0, (config.num_kv_heads, -1, config.head_dim))[:, 0].flatten()


def _weight(layer: nn.Module, name: str) -> Tensor:
    return layer.get_parameter(f"{name}.weight").data
