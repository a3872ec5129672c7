"""The engine profile: what a server is told, in LMDeploy 0.18's own words, checked before it is told.

`--cache-max-entry-count` is the share of the memory that is free after the weights are loaded; `--quant-policy` the
bits of the KV cache. `command` turns a profile into LMDeploy's command line.
"""

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from registry.card import PYTORCH_ONLY
from serving import ranks, turbomind
from serving.errors import ServingError
from serving.gpus import default_batch
from serving.shape import Shape

HEAD_DIMS = (64, 128, 192, 256)  # the engine has attention kernels for these; another head_dim aborts its process
NO_INT4_KV = (64, 192)  # it reads a misaligned address with heads of 64, and has no kernel for 192: either ends it
HALVES = ("float16", "bfloat16")
TEXT_MODELS = ("InternLM2ForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
TURBOMIND = (*TEXT_MODELS, "InternVLChatModel", "InternVLForConditionalGeneration")  # LMDeploy's PyTorch serves others
UNMAKEABLE = ("LlavaNextForConditionalGeneration",)  # its preprocessor asks for what transformers had before 4.52

KvBits = Literal[0, 4, 8]
ModelFormat = Literal["hf", "awq", "gptq", "compressed-tensors", "fp8"]


class EngineProfile(BaseModel):
    """How LMDeploy runs a model. Every field has LMDeploy's default; None leaves the choice to LMDeploy."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model_format: ModelFormat | None = None
    cache_max_entry_count: float = Field(default=0.8, gt=0, lt=1)  # share of the free memory
    quant_policy: KvBits = 0  # bits of the KV cache; 0 keeps it in 16
    session_len: int | None = Field(default=None, ge=1)  # tokens of prompt and answer
    tp: int = Field(default=1, ge=1)  # GPUs
    max_batch_size: int | None = Field(default=None, ge=1)  # sequences at once
    max_prefill_token_num: int = Field(default=8192, ge=1)  # tokens of prompts at once
    enable_prefix_caching: bool = False

    @property
    def arguments(self) -> list[str]:
        """The flags, in LMDeploy's spelling; what is None is left out."""
        values = {
            "--model-format": self.model_format,
            "--cache-max-entry-count": self.cache_max_entry_count,
            "--quant-policy": self.quant_policy,
            "--session-len": self.session_len,
            "--tp": self.tp,
            "--max-batch-size": self.max_batch_size,
            "--max-prefill-token-num": self.max_prefill_token_num,
        }
        flags = [part for flag, value in values.items() if value is not None for part in (flag, str(value))]
        return flags + (["--enable-prefix-caching"] if self.enable_prefix_caching else [])


def fitted(profile: EngineProfile, shape: Shape, place: str) -> EngineProfile:
    """The profile with the artifact's own format and session length; refused if the engine would not run it."""
    if found := problems(profile, shape):
        raise ServingError(f"{place}: {'; '.join(found)}")
    return profile.model_copy(
        update={
            "model_format": profile.model_format or _told_format(shape),
            "session_len": profile.session_len or shape.max_positions,
        }
    )


def batched(profile: EngineProfile, card: str) -> EngineProfile:
    """The profile with the number of sequences at once that LMDeploy would choose on this card, unless it says one."""
    return profile.model_copy(update={"max_batch_size": profile.max_batch_size or default_batch(card)})


def _told_format(shape: Shape) -> ModelFormat | None:
    """How the artifact is stored, where that has a word among LMDeploy's flags; it reads the others by itself."""
    return next((known for known in get_args(ModelFormat) if known == shape.quant_method), None)


def problems(profile: EngineProfile, shape: Shape) -> list[str]:
    """Each rule of the engine that this profile breaks on this model, with the value and the legal ones."""
    found = []
    if shape.head_dim not in HEAD_DIMS:
        found.append(f"head_dim is {shape.head_dim}, the engine has kernels for {', '.join(map(str, HEAD_DIMS))}")
    if profile.quant_policy not in kv_bits(shape):
        found.append(f"quant_policy 4 ends the engine with heads of {shape.head_dim}; use 0 or 8")
    found += ranks.problems(shape, profile.tp)
    if backend(shape) == "turbomind":
        found += turbomind.problems(shape)
        if shape.sees_images:
            found += _two_types(shape)
    found += _wrong_format(profile, shape)
    if profile.session_len and shape.longest_session and profile.session_len > shape.longest_session:
        found.append(f"session_len {profile.session_len} is longer than the model's {shape.longest_session} positions")
    return found


def kv_bits(shape: Shape) -> list[KvBits]:
    """What the engine can keep this model's KV cache in, the widest first; 0 is 16."""
    return [0, 8] if shape.head_dim in NO_INT4_KV else [0, 8, 4]


def require_lmdeploy_s(shape: Shape, place: str) -> None:
    """Refuses an architecture that LMDeploy 0.18 lists and cannot make with any transformers that it takes."""
    if shape.architecture in UNMAKEABLE:
        told = f"LMDeploy 0.18 fails at {shape.architecture} with every transformers that it takes"
        raise ServingError(f"{place}: {told}; serve it with --engine transformers, or a LLaVA in its place")


def _two_types(shape: Shape) -> list[str]:
    """Pixels come in the whole's type; what sees computes in its own, or in bfloat16 where that is none of 16 bits."""
    if shape.dtype is None or shape.dtype == (shape.vision_dtype if shape.vision_dtype in HALVES else "bfloat16"):
        return []
    told = f"dtype is {shape.dtype} and vision_config's {shape.vision_dtype or 'not said'}"
    return [f"{told}, which ends the engine at the first image; write {' or '.join(HALVES)} in both"]


def _wrong_format(profile: EngineProfile, shape: Shape) -> list[str]:
    stored = shape.quant_method or "hf"
    if profile.model_format is None or profile.model_format == stored:
        return []
    return [f"model_format is {profile.model_format}, but the artifact is {stored}; leave it out"]


def backend(shape: Shape) -> Literal["turbomind", "pytorch"]:
    """Which of LMDeploy's engines serves this architecture and format: TurboMind where it can."""
    can = shape.architecture in TURBOMIND and shape.quant_method not in PYTORCH_ONLY
    return "turbomind" if can else "pytorch"


def command(
    profile: EngineProfile, folder: Path, *, host: str, port: int, model_name: str, backend: str = "turbomind"
) -> list[str]:
    """LMDeploy's command line for this profile; keys are no part of it, because every user can read a command line."""
    where = ["--server-name", host, "--server-port", str(port), "--model-name", model_name]
    return ["serve", "api_server", str(folder), "--backend", backend, *where, *profile.arguments]
