"""InternVL in the form of the stock transformers class: the same numbers under the names that need no code.

InternVL's own `InternVLChatModel` exists only as code that comes with its checkpoints, which nobody here runs. Its
stock twin is `InternVLForConditionalGeneration`, which transformers and LMDeploy's TurboMind both know.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoint.tensor_files import TensorFiles
from compress.errors import CompressError

STOCK_CLASS = "InternVLForConditionalGeneration"
IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "</img>",  # the stock processor wants one; a new one would lie outside the embeddings
}
# A template of texts alone is led by this: of a message's parts it makes one text, an image where it stands in them.
PARTS = """{%- set ns = namespace(told=[], text="") -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set ns.told = ns.told + [message] -%}
{%- else -%}
{%- set ns.text = "" -%}
{%- for part in message.content -%}
{%- set ns.text = ns.text + (part.text if part.type == "text" else "<IMG_CONTEXT>\\n") -%}
{%- endfor -%}
{%- set ns.told = ns.told + [{"role": message.role, "content": ns.text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = ns.told -%}
"""
LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
IN_A_LAYER = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.projection_layer",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
OUTSIDE = {
    "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding": "vision_tower.embeddings.patch_embeddings.projection",
    "mlp1.0": "multi_modal_projector.layer_norm",
    "mlp1.1": "multi_modal_projector.linear_1",
    "mlp1.3": "multi_modal_projector.linear_2",
}


def stock_tensors(files: TensorFiles, name: str) -> Iterator[tuple[str, Tensor]]:
    """The stock names and tensors of one of InternVL's own; its fused queries, keys and values are three."""
    tensor = files.read(name)
    layer = LAYER.fullmatch(name)
    if layer and (fused := re.fullmatch(r"attn\.qkv\.(weight|bias)", layer[2])):
        for part, third in zip("qkv", tensor.chunk(3), strict=True):
            yield f"vision_tower.encoder.layer.{layer[1]}.attention.{part}_proj.{fused[1]}", third.contiguous()
        return
    place, known = (f"vision_tower.encoder.layer.{layer[1]}.", IN_A_LAYER) if layer else ("", OUTSIDE)
    inner = layer[2] if layer else name
    module, _, kind = inner.rpartition(".")
    if inner in known:
        yield place + known[inner], tensor
    elif module in known:
        yield f"{place}{known[module]}.{kind}", tensor
    else:
        raise CompressError(f"{files.file_of(name)}: {name} is no tensor of InternVL's; use another copy")


def stock_config(config: Mapping[str, Any], text: Mapping[str, Any], image_token_id: int) -> dict[str, Any]:
    """The stock class's config.json with this language model."""
    vision, image = config["vision_config"], config["vision_config"]["image_size"]
    patch, ratio = vision["patch_size"], config.get("downsample_ratio", 0.5)
    return {
        "architectures": [STOCK_CLASS],
        "model_type": "internvl",
        "text_config": dict(text),
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            **{key: vision[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
            "num_attention_heads": vision["num_attention_heads"],
            "num_channels": vision.get("num_channels", 3),
            "attention_bias": vision.get("qkv_bias", True),
            "use_qk_norm": vision.get("qk_normalization", False),
            "hidden_act": vision.get("hidden_act", "gelu"),
            "norm_type": vision.get("norm_type", "layer_norm"),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "image_size": [image, image],
            "patch_size": [patch, patch],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
        },
        "downsample_ratio": ratio,
        "image_seq_length": int((image // patch) ** 2 * ratio**2),
        "image_token_id": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.get("select_layer", -1),
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
    }


def processor_files(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the stock image processor and processor read."""
    size = config.get("force_image_size") or config["vision_config"]["image_size"]
    image = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": size, "width": size},
        "crop_to_patches": bool(config.get("dynamic_image_size", False)),
        "min_patches": config.get("min_dynamic_patch", 1),
        "max_patches": config.get("max_dynamic_patch", 12),
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    length = int((size // config["vision_config"]["patch_size"]) ** 2 * config.get("downsample_ratio", 0.5) ** 2)
    return {
        "preprocessor_config.json": image,
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": length},
    }


def require_ps_version(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses the first InternVLs, which shuffle pixels another way."""
    if config.get("ps_version") != "v2":
        raise CompressError(
            f"{folder}: ps_version is {config.get('ps_version')!r}, only v2 is known; use InternVL 1.5 or newer"
        )
