"""What clipping did: a group's grid may span less than its weights, so that the rest is rounded finer."""

# W (out, in) the weights that were rounded, folds done · low, high, step (out, groups) of the grids

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from compress.quantize.formats.awq import unpack_linear


@dataclass(frozen=True)
class Scheme:
    """Whole numbers of `bits` bits in groups of `group_size` inputs; `method` is config.json's `quant_method`."""

    bits: int
    group_size: int
    method: str


@dataclass(frozen=True)
class Range:
    """From where to where each group's grid goes, and its step."""

    low: Float[Tensor, "out groups"]
    high: Float[Tensor, "out groups"]
    step: Float[Tensor, "out groups"]


def scheme_of(quantization: Mapping[str, object] | None) -> Scheme | None:
    """The scheme that a config.json names, in AWQ's and GPTQ's words or in compressed-tensors'; None for others."""
    said: object = quantization or {}
    method = str(_mapping(said).get("quant_method"))
    for group in _mapping(_mapping(said).get("config_groups")).values():
        said = _mapping(group).get("weights")
    about = _mapping(said)
    bits, group_size = about.get("bits", about.get("num_bits")), about.get("group_size")
    if about.get("type", "int") != "int" or not isinstance(bits, int) or not isinstance(group_size, int):
        return None
    return Scheme(bits, group_size, method) if group_size > 0 else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def grid_range(stored: Mapping[str, Tensor], V: Float[Tensor, "out in_features"], scheme: Scheme) -> Range:
    """The grids of AWQ's triple as they are; of other formats what their greatest and least stored weights span."""
    if scheme.method == "awq":
        _, grid = unpack_linear(dict(stored))
        s, z = grid.scales.to(V.device), grid.zeros.to(V.device)
        return Range(-z * s, (grid.top - z) * s, s)
    groups = V.unflatten(1, (-1, scheme.group_size))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    return Range(low, high, (high - low) / (2**scheme.bits - 1))


def clipped(W: Float[Tensor, "out in_features"], grid: Range) -> tuple[float, float]:
    """The share of the weights more than half a step outside their grid, and the mean share of range given up."""
    groups = W.unflatten(1, (grid.low.shape[1], -1))
    low, high, half = (t[..., None] for t in (grid.low, grid.high, grid.step / 2))
    outside = (groups < low - half) | (groups > high + half)
    whole = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
    kept = (grid.high - grid.low) / whole.clamp(min=torch.finfo(W.dtype).tiny)
    return outside.float().mean().item(), (1 - kept).clamp(min=0).mean().item()
