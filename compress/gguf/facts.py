"""What a GGUF file says of its model beside the tensors: sizes and RoPE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.checkpoint.config import ModelConfig
from compress.errors import CompressError

FAMILIES = ("llama",)  # InternLM2 is one of them in memory
REMEDY = "serve it by LMDeploy or transformers"


@dataclass(frozen=True)
class Rope:
    """How positions turn: the context that this is right for, the factor of linear scaling, and what is to be said."""

    context: int
    linear_factor: float | None = None
    note: str | None = None


def require_family(config: ModelConfig, place: str) -> None:
    """Refuses an architecture whose tensors or positions are others."""
    if config.family not in FAMILIES:
        raise CompressError(
            f"{place}: {config.family} is not written to GGUF here, only {', '.join(FAMILIES)}; {REMEDY}"
        )


def rope(config: ModelConfig, place: str) -> Rope:
    """The model's RoPE as llama.cpp can compute it; refuses what it cannot."""
    scaling = config.fields["rope_scaling"] or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    context = int(config.fields["max_position_embeddings"])
    if kind is None:
        return Rope(context)
    if kind == "linear":
        factor = float(scaling["factor"])
        return Rope(int(context * factor), factor)
    if kind == "dynamic":  # begins to stretch behind max_position_embeddings; before, it is the plain RoPE
        return Rope(context, note=f"dynamic NTK RoPE is not known to llama.cpp: the same up to {context} tokens")
    raise CompressError(f"{place}: rope_scaling {kind} is not written to GGUF here (none, linear, dynamic); {REMEDY}")


def write_facts(writer: Any, config: ModelConfig, turned: Rope, place: str) -> None:
    """Tells a GGUFWriter the sizes."""
    fields = config.fields
    if (act := fields.get("hidden_act", "silu")) != "silu":
        raise CompressError(f"{place}: hidden_act is {act}, llama.cpp computes silu; serve it by transformers")
    told: list[tuple[Callable[..., None], Any]] = [
        (writer.add_context_length, turned.context),
        (writer.add_embedding_length, int(fields["hidden_size"])),
        (writer.add_block_count, config.num_layers),
        (writer.add_feed_forward_length, int(fields["intermediate_size"])),
        (writer.add_head_count, config.num_heads),
        (writer.add_head_count_kv, config.num_kv_heads),
        (writer.add_key_length, config.head_dim),
        (writer.add_value_length, config.head_dim),
        (writer.add_rope_dimension_count, config.head_dim),
        (writer.add_rope_freq_base, float(fields["rope_theta"])),
        (writer.add_layer_norm_rms_eps, float(fields["rms_norm_eps"])),
        (writer.add_vocab_size, int(fields["vocab_size"])),
    ]
    for tell, value in told:
        tell(value)
    if turned.linear_factor is not None:
        from gguf import RopeScalingType  # noqa: PLC0415 - an extra

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(turned.linear_factor)
