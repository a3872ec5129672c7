"""Small random models in the layouts that the hub has, and windows to run through them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    "bias": False,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 64,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def internlm2_tensors(config=CONFIG, seed=0):
    """Random tensors under InternLM2's names; inputs of a few channels are large, as in trained models."""
    torch.manual_seed(seed)
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    fused = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head_dim

    def linear(rows, columns):
        return torch.randn(rows, columns) / columns**0.5

    def norm():
        weight = 1 + 0.1 * torch.randn(hidden)
        weight[::37] *= 8
        return weight

    tensors = {"model.tok_embeddings.weight": torch.randn(vocab, hidden), "model.norm.weight": norm()}
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        tensors[at + "attention.wqkv.weight"] = linear(fused, hidden)
        tensors[at + "attention.wo.weight"] = linear(hidden, hidden)
        tensors[at + "feed_forward.w1.weight"] = linear(inter, hidden)
        tensors[at + "feed_forward.w3.weight"] = linear(inter, hidden)
        tensors[at + "feed_forward.w2.weight"] = linear(hidden, inter)
        tensors[at + "attention_norm.weight"] = norm()
        tensors[at + "ffn_norm.weight"] = norm()
        if config["bias"]:
            tensors[at + "attention.wqkv.bias"] = torch.randn(fused)
            tensors[at + "attention.wo.bias"] = torch.randn(hidden)
    tensors["output.weight"] = linear(vocab, hidden)
    return tensors


def write_config(folder: Path, config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf8")


def write_internlm2(folder: Path, config=CONFIG, seed=0) -> dict[str, torch.Tensor]:
    """A model folder of one safetensors file; returns its tensors."""
    tensors = internlm2_tensors(config, seed)
    write_config(folder, config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def windows(count=4, length=32, vocab=512, seed=0) -> torch.Tensor:
    return torch.randint(0, vocab, (count, length), generator=torch.Generator().manual_seed(seed))
