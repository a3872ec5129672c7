"""Small random vision-language folders of the real architectures, as the hub has them."""

import json

import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, internlm2_tensors
from tiny_repository import MARKS, TEMPLATE, WORDS, write_source

LANGUAGE = CONFIG | {"num_hidden_layers": 2, "max_position_embeddings": 256}
IMAGE = "<image>"
WIDTH = 64
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_channels": 3,
    "image_size": 28,
    "patch_size": 14,
}
TILINGS = [[28, 56], [56, 28], [56, 56]]  # of LLaVA-Next: heights and widths that an image may be cut into tiles at


def write_internvl(folder):
    """InternVLChatModel with an InternLM2 decoder; no code comes with it."""
    write_source(folder, ("<img>", "</img>", "<IMG_CONTEXT>"))
    torch.manual_seed(1)
    tensors = {f"language_model.{name}": t for name, t in internlm2_tensors(LANGUAGE).items()} | _internvit()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    vision = VISION | {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "layer_norm_eps": 1e-6}
    vision |= {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True, "hidden_act": "gelu"}
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "llm_config": LANGUAGE,
        "vision_config": vision,
        "downsample_ratio": 0.5,
        "force_image_size": 28,
        "dynamic_image_size": True,
        "ps_version": "v2",
        "select_layer": -1,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said |= {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": ["x.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "modeling_internvl_chat.py").write_text("raise SystemExit('code of a checkpoint was run')")
    from transformers import CLIPImageProcessor

    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    return folder


def _internvit():
    tensors = {
        "vision_model.embeddings.class_embedding": torch.randn(1, 1, WIDTH),
        "vision_model.embeddings.patch_embedding.weight": torch.randn(WIDTH, 3, 14, 14) / 25,
        "vision_model.embeddings.patch_embedding.bias": torch.zeros(WIDTH),
        "vision_model.embeddings.position_embedding": torch.randn(1, 5, WIDTH),
        "mlp1.0.weight": torch.ones(4 * WIDTH),
        "mlp1.0.bias": torch.zeros(4 * WIDTH),
        "mlp1.1.weight": torch.randn(256, 4 * WIDTH) / 16,
        "mlp1.1.bias": torch.zeros(256),
        "mlp1.3.weight": torch.randn(256, 256) / 16,
        "mlp1.3.bias": torch.zeros(256),
    }
    shapes = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (128, WIDTH),
        "mlp.fc2": (WIDTH, 128),
    }
    for n in range(2):
        at = f"vision_model.encoder.layers.{n}."
        tensors |= {at + "ls1": torch.full((WIDTH,), 0.1), at + "ls2": torch.full((WIDTH,), 0.1)}
        for norm in ("norm1", "norm2"):
            tensors |= {f"{at}{norm}.weight": torch.ones(WIDTH), f"{at}{norm}.bias": torch.zeros(WIDTH)}
        for name, (rows, columns) in shapes.items():
            tensors[f"{at}{name}.weight"] = torch.randn(rows, columns) / columns**0.5
            tensors[f"{at}{name}.bias"] = torch.zeros(rows)
    return tensors


def write_llava(folder):
    """LlavaForConditionalGeneration as transformers saves it, with its processor."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    _save_processor(folder, LlavaProcessor, CLIPImageProcessor(**sizes))
    LlavaForConditionalGeneration(_llava_config(LlavaConfig)).save_pretrained(folder)
    return folder


def write_llava_next(folder):
    """LlavaNextForConditionalGeneration: an image is itself made small, and tiles of it with a newline after each row.

    Images of these tests are cut into two tiles or four, by their shape.
    """
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    _save_processor(folder, LlavaNextProcessor, LlavaNextImageProcessor(**sizes, image_grid_pinpoints=TILINGS))
    model = LlavaNextForConditionalGeneration(_llava_config(LlavaNextConfig, image_grid_pinpoints=TILINGS))
    model.model.image_newline.data = torch.randn(LANGUAGE["hidden_size"])
    model.save_pretrained(folder)
    return folder


def _save_processor(folder, kind, images):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS[:-1], IMAGE]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([*MARKS, IMAGE])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    template = TEMPLATE.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}",
    )
    kind(
        images, fast, patch_size=14, vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip


def _llava_config(kind, **more):
    from transformers import CLIPVisionConfig, LlamaConfig

    torch.manual_seed(2)
    sized = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = {key: LANGUAGE[key] for key in (*sized, "vocab_size", "max_position_embeddings", "rms_norm_eps")}
    vision = CLIPVisionConfig(**(VISION | {"projection_dim": WIDTH}))
    return kind(vision_config=vision, text_config=LlamaConfig(**text), image_token_index=len(WORDS) - 1, **more)


def tensors_of(folder):
    """All tensors of a folder."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
