"""A model's shape, read from any supported `config.json` and written so that every engine reads the same.

transformers 4 keeps RoPE in `rope_theta` and `rope_scaling`, transformers 5 in `rope_parameters`; LMDeploy has no
defaults for InternLM2 at all, and takes a missing `rope_theta` for 10,000 without a word. So every key is written out,
in the spelling of transformers 4, which transformers 5 and LMDeploy read too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress.errors import CompressError

# `llama` stands for the names of the stock transformers class, whichever family it is.
LayoutName = Literal["llama", "internlm2"]

STOCK_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
INTERNLM2_CLASS = "InternLM2ForCausalLM"
REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
)
# Of a checkpoint's own code, of the library that wrote it, or of another spelling of what is written here.
DROPPED = (
    "auto_map",
    "transformers_version",
    "rope_parameters",
    "dtype",
    "_name_or_path",
    "attn_implementation",
)


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` of the stock transformers class says: `family` is its model_type, `fields` its keys."""

    family: str
    fields: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.fields["num_hidden_layers"])

    @property
    def num_heads(self) -> int:
        """Query heads of a layer."""
        return int(self.fields["num_attention_heads"])

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads of a layer."""
        return int(self.fields["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return int(self.fields["head_dim"])

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding matrix."""
        return bool(self.fields["tie_word_embeddings"])

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return ModelConfig(self.family, {**self.fields, **changes})


def read_config(folder: Path) -> dict[str, Any]:
    """The raw `config.json` of a model folder."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        raise CompressError(f"{path}: not found; a model folder holds config.json beside its weights") from None
    except json.JSONDecodeError as error:
        raise CompressError(f"{path}: not JSON ({error}); fetch the model again") from None
    if not isinstance(raw, dict):
        raise CompressError(f"{path}: holds a {type(raw).__name__}, not an object; fetch the model again")
    return raw


def parse_config(raw: Mapping[str, Any], place: str) -> ModelConfig:
    """The stock configuration that says the same as `raw`, whichever supported spelling `raw` has."""
    named = (raw.get("architectures") or ["none named"])[0]
    missing = [key for key in REQUIRED if raw.get(key) is None]
    family = "llama" if named == INTERNLM2_CLASS else _stock_family(named, place)
    if missing:
        raise CompressError(f"{place}: {', '.join(missing)} missing; write the published values, engines guess them")
    _require_sizes(raw, place)
    fields = {key: value for key, value in raw.items() if key not in DROPPED} | _rope(raw, place)
    fields |= {
        "architectures": [STOCK_CLASSES[family]],
        "model_type": family,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "torch_dtype": str(raw.get("torch_dtype") or raw.get("dtype") or "float32").removeprefix("torch."),
    }
    if named == INTERNLM2_CLASS:
        fields["attention_bias"] = bool(fields.pop("bias", False))
        fields["mlp_bias"] = False
    return ModelConfig(family, fields)


def _require_sizes(raw: Mapping[str, Any], place: str) -> None:
    """Refuses sizes that are no numbers, and heads that do not divide."""
    sizes = {key: raw[key] for key in REQUIRED if key != "rms_norm_eps"}
    wrong = [f"{key} is {size!r}" for key, size in sizes.items() if not isinstance(size, int) or size < 1]
    if not wrong:
        heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
        if heads % kv_heads:
            wrong.append(f"{heads} heads do not divide by {kv_heads} kv heads")
        if not raw.get("head_dim") and sizes["hidden_size"] % heads:
            wrong.append(f"hidden_size {sizes['hidden_size']} does not divide by {heads} heads")
    if wrong:
        raise CompressError(f"{place}: {', '.join(wrong)}; write the published values")


def _stock_family(architecture: str, place: str) -> str:
    for family, name in STOCK_CLASSES.items():
        if name == architecture:
            return family
    known = ", ".join([INTERNLM2_CLASS, *STOCK_CLASSES.values()])
    raise CompressError(f"{place}: architecture {architecture} is not supported; choose a base of {known}")


def _rope(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from either generation's spelling."""
    parameters = raw.get("rope_parameters") or {}
    theta = parameters.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise CompressError(f"{place}: rope_theta missing; write the published value, engines take 10000 for it")
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"} or raw.get("rope_scaling")
    if scaling and scaling.get("rope_type", scaling.get("type")) == "default":
        scaling = None
    return {"rope_theta": float(theta), "rope_scaling": scaling or None}


def internlm2_fields(config: ModelConfig, place: str) -> dict[str, Any]:
    """The same model's keys as InternLM2's own `config.json` has them."""
    if config.family != "llama" or config.fields.get("mlp_bias"):
        raise CompressError(f"{place}: a {config.family} model cannot be written as internlm2; use layout: llama")
    fields = {key: value for key, value in config.fields.items() if key not in ("attention_bias", "mlp_bias")}
    return fields | {
        "architectures": [INTERNLM2_CLASS],
        "model_type": "internlm2",
        "bias": bool(config.fields.get("attention_bias", False)),
    }
