"""What config.json alone says of a model's size: enough to plan its memory before a single weight is downloaded.

The language model of a vision-language folder stands in a nested section, its vision tower in another.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ServingError

CONFIG = "config.json"
LANGUAGE_SECTIONS = ("llm_config", "text_config")  # InternVL's word and LLaVA's
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
KEPT = ("modules_to_not_convert", "ignore")  # how formats name the linears that stay in 16 bits
PATTERN = "re:"  # what compressed-tensors writes before a regular expression
BIASES = ("bias", "attention_bias", "mlp_bias")
ROPE_SECTIONS = ("rope_scaling", "rope_parameters")  # of transformers 4 and 5


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as InternLM2, Llama, Qwen2 and Qwen3 have them."""

    architecture: str  # of the whole model: what LMDeploy chooses its engine by
    hidden: int
    inter: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int | None  # None where config.json does not say
    rope_factor: float  # how much longer than max_positions a session may be
    tied: bool
    bits: int  # of a decoder linear's weight, as stored
    group_size: int | None  # None where the weights are not quantized
    quant_method: str | None
    dtype: str | None  # of what is not quantized; None where config.json does not say
    vision_dtype: str | None  # likewise of what sees
    vision_parameters: int  # of a vision tower and projector; 0 where the model sees no images
    language: str | None = None  # the language model's architecture, where it is a part; None where it is the whole
    kept: tuple[str, ...] = ()  # names, or patterns of names, of what a quantized model has in 16 bits
    biases: tuple[str, ...] = ()  # which of BIASES config.json says that the linears have
    rope: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what it says of positions, as it says it

    @property
    def decoder(self) -> str:
        """The architecture of what speaks."""
        return self.language or self.architecture

    @property
    def sees_images(self) -> bool:
        """Whether a prompt may hold an image."""
        return self.vision_parameters > 0

    @property
    def linear_parameters(self) -> int:
        """Of the decoder layers: what quantization makes smaller."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.layers * (self.hidden * (2 * q + 2 * kv) + 3 * self.hidden * self.inter)

    @property
    def other_parameters(self) -> int:
        """Embeddings, head, norms and vision; a tied head is a second matrix in the engine's memory all the same."""
        norms = self.hidden * (2 * self.layers + 1)
        return 2 * self.vocab * self.hidden + norms + self.vision_parameters

    @property
    def longest_session(self) -> int | None:
        """Positions that the model's RoPE was made for."""
        return None if self.max_positions is None else int(self.max_positions * self.rope_factor)


def read_shape(path: Path) -> Shape:
    """The shape that a folder's config.json, or such a file itself, describes."""
    file = path / CONFIG if path.is_dir() else path
    try:
        raw = json.loads(file.read_text("utf8"))
    except OSError:
        raise ServingError(f"{file}: no configuration there; give a model folder or its config.json") from None
    except ValueError as error:
        raise ServingError(f"{file}: is not JSON ({error}); fetch it again") from None
    if not isinstance(raw, dict):
        raise ServingError(f"{file}: holds a {type(raw).__name__}, not an object; fetch it again")
    return parse_shape(raw, str(file))


def parse_shape(raw: Mapping[str, Any], place: str) -> Shape:
    """The shape in a parsed config.json."""
    section = next((name for name in LANGUAGE_SECTIONS if isinstance(raw.get(name), dict)), None)
    text = raw[section] if section else raw
    text_place = place if section is None else f"{place}: {section}"
    _require(text, text_place)
    heads = text["num_attention_heads"]
    quantization = raw.get("quantization_config") or text.get("quantization_config") or {}
    return Shape(
        architecture=(raw.get("architectures") or ["unnamed"])[0],
        hidden=text["hidden_size"],
        inter=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        vocab=text["vocab_size"],
        max_positions=text.get("max_position_embeddings"),
        rope_factor=_rope_factor(text, text_place),
        tied=bool(text.get("tie_word_embeddings", False)),
        bits=_bits(quantization) if quantization else 16,
        group_size=_group_size(quantization) if quantization else None,
        quant_method=quantization.get("quant_method") if quantization else None,
        dtype=_dtype(raw) or _dtype(text),
        vision_dtype=_dtype(raw.get("vision_config") or {}),
        vision_parameters=_vision_parameters(raw, text["hidden_size"]) if section else 0,
        language=(text.get("architectures") or [None])[0] if section else None,
        kept=_kept(quantization, place),
        biases=tuple(key for key in BIASES if text.get(key)),
        rope={key: text[key] for key in ("rope_theta", *ROPE_SECTIONS) if key in text},
    )


def _dtype(section: Mapping[str, Any]) -> str | None:
    found = section.get("dtype") or section.get("torch_dtype")
    return str(found) if found else None


def _require(text: Mapping[str, Any], place: str) -> None:
    wrong = [
        f"{key} is {text.get(key)!r}" for key in REQUIRED if not isinstance(text.get(key), int) or text.get(key, 0) < 1
    ]
    if wrong:
        raise ServingError(f"{place}: {', '.join(wrong)}; write the published values")


def _bits(quantization: Mapping[str, Any]) -> int:
    """Of a quantized linear's weight, in any spelling that the engine takes."""
    if quantization.get("quant_method") in ("fp8", "smooth_quant"):
        return 8
    return int(_weights(quantization).get("num_bits") or quantization.get("bits", 4))


def _group_size(quantization: Mapping[str, Any]) -> int:
    return int(_weights(quantization).get("group_size") or quantization.get("group_size", 128))


def _weights(quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    """How compressed-tensors describes a group of linears; empty for the others."""
    groups: Mapping[str, Any] = quantization.get("config_groups") or {}
    weights: Mapping[str, Any] = next((group.get("weights") or {} for group in groups.values()), {})
    return weights


def _kept(quantization: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """What is left in 16 bits, as config.json names it."""
    found: list[str] = []
    for key in KEPT:
        names = quantization.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ServingError(f"{place}: {key} is {names!r}, not a list of names; write the published value")
        found += names
    for name in found:
        if name.startswith(PATTERN):
            _require_pattern(name.removeprefix(PATTERN), place)
    return tuple(found)


def _require_pattern(pattern: str, place: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        told = f"ignore has {PATTERN}{pattern}, which is no regular expression ({error})"
        raise ServingError(f"{place}: {told}; write the published value") from None


def _rope_factor(text: Mapping[str, Any], place: str) -> float:
    """`factor` of a RoPE that stretches, in either generation's spelling; llama3's positions are the stretched ones."""
    theta = text.get("rope_theta")
    wrong = [f"rope_theta is {theta!r}"] if theta is not None and not _is_number(theta) else []
    wrong += [f"{key} is {text[key]!r}" for key in ROPE_SECTIONS if not isinstance(text.get(key) or {}, Mapping)]
    if wrong:
        raise ServingError(f"{place}: {', '.join(wrong)}; write the published values")
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("linear", "dynamic"):
        return 1.0
    if not _is_number(rope.get("factor")):
        raise ServingError(f"{place}: rope {kind} has factor {rope.get('factor')!r}; write the published value")
    return float(rope["factor"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _vision_parameters(raw: Mapping[str, Any], hidden: int) -> int:
    """A vision transformer of v wide layers, its patches, and two linears from what it sees to the language model."""
    vision = raw.get("vision_config") or {}
    v, inter, layers = (vision.get(key, 0) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    patch = vision.get("patch_size", 14)
    patches = 3 * (patch[0] if isinstance(patch, list) else patch) ** 2 * v
    seen = v / raw.get("downsample_ratio", 1) ** 2  # InternVL joins neighbours before it projects
    return int(layers * (4 * v * v + 2 * v * inter) + patches + (seen + hidden) * hidden) if v else 0
