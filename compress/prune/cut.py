"""Taking channels out of a stock decoder layer in place: inputs, the rows that make them, and the residual stream's."""

# kept: which of a site's inputs stay

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from compress.quantize.sites import SITES, Site

MAKERS = {"self_attn.o_proj": "attention", "mlp.down_proj": "feed-forward"}


def keep_(layer: nn.Module, name: str, kept: Int64[Tensor, " kept"], dim: int) -> None:
    """Only some outputs (0) or inputs (1) of a linear stay; a bias belongs to the outputs."""
    module = layer.get_submodule(name)
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.dim() == 2 or dim == 0:
            _put_(module, key, parameter.data.index_select(dim, kept))


def keep_inputs_(layer: nn.Module, site: Site, kept: Int64[Tensor, " kept"], head_dim: int) -> None:
    """Only some inputs of the site's linear stay, and with them only what makes those."""
    keep_(layer, site.key, kept, 1)
    if site.key == "mlp.down_proj":
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            keep_(layer, name, kept, 0)
        return
    keep_(layer, "self_attn.q_proj", kept, 0)
    shared: int = layer.self_attn.num_key_value_groups  # type: ignore[union-attr,assignment]
    first = kept.view(-1, shared, head_dim)[:, 0]  # of each group the first query head, which says which group
    rows = first // (shared * head_dim) * head_dim + first % head_dim
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        keep_(layer, name, rows.flatten(), 0)


def narrow_(layer: nn.Module, channels: Int64[Tensor, " channels"]) -> None:
    """Only some channels of the residual stream stay: what reads it, what writes to it, and the norms between."""
    for site in SITES:
        for name in site.linears:
            keep_(layer, name, channels, 0 if site.writes_residual else 1)
        if not site.writes_residual:
            keep_(layer, site.producer, channels, 0)


def set_weight_(layer: nn.Module, name: str, weight: Float[Tensor, "out in_features"]) -> None:
    """Gives a linear a weight, of another size perhaps."""
    module = layer.get_submodule(name)
    old: Tensor = module.weight  # type: ignore[assignment]
    _put_(module, "weight", weight.to(old.dtype))


def scale_norm_(layer: nn.Module, name: str, factor: float) -> None:
    """Multiplies a norm's weight."""
    layer.get_parameter(f"{name}.weight").data.mul_(factor)


def group_units(
    num_kv_heads: int, heads_each: int, head_dim: int, device: torch.device
) -> Int64[Tensor, "groups size"]:
    """The inputs of o that belong to each kv head: all channels of its query heads."""
    return torch.arange(num_kv_heads * heads_each * head_dim, device=device).view(num_kv_heads, -1)


def _put_(module: nn.Module, key: str, value: Tensor) -> None:
    setattr(module, key, nn.Parameter(value.contiguous(), requires_grad=False))
