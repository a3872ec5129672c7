"""InternLM2's forward pass written from its published architecture, in plain torch and float32.

It shares no code with the project: fused wqkv with grouped heads, rotary embeddings by halves, RMSNorm, SwiGLU, and
InternLM2.5's dynamic NTK, which raises the rotary base once a sequence is longer than the trained length.
"""

import torch
from torch import nn


def rms_norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotary(config, head_dim, length):
    base, longest = config["rope_theta"], config["max_position_embeddings"]
    scaling = config.get("rope_scaling")
    if scaling and scaling["type"] == "dynamic" and length > longest:
        factor = scaling["factor"]
        base *= ((factor * length / longest) - (factor - 1)) ** (head_dim / (head_dim - 2))
    frequencies = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


def attention(x, tensors, at, config):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, length = config["hidden_size"] // heads, x.shape[0]
    fused = nn.functional.linear(x, tensors[at + "wqkv.weight"], tensors.get(at + "wqkv.bias"))
    fused = fused.view(length, kv_heads, heads // kv_heads + 2, head_dim)
    cos, sin = rotary(config, head_dim, length)
    q = rotate(fused[:, :, :-2].reshape(length, heads, head_dim), cos, sin)
    k = rotate(fused[:, :, -2], cos, sin)
    v = fused[:, :, -1]
    mask = torch.full((length, length), float("-inf")).triu(1)
    out = []
    for head in range(heads):
        group = head // (heads // kv_heads)
        weights = (q[:, head] @ k[:, group].T / head_dim**0.5 + mask).softmax(-1)
        out.append(weights @ v[:, group])
    return nn.functional.linear(torch.cat(out, -1), tensors[at + "wo.weight"], tensors.get(at + "wo.bias"))


def logits(tensors, config, ids):
    """Logits (length, vocab) of one sequence from tensors under InternLM2's own names."""
    tensors, eps = {k: v.float() for k, v in tensors.items()}, config["rms_norm_eps"]
    x = tensors["model.tok_embeddings.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        normed = rms_norm(x, tensors[at + "attention_norm.weight"], eps)
        x = x + attention(normed, tensors, at + "attention.", config)
        normed = rms_norm(x, tensors[at + "ffn_norm.weight"], eps)
        gate = nn.functional.silu(normed @ tensors[at + "feed_forward.w1.weight"].T)
        x = x + (gate * (normed @ tensors[at + "feed_forward.w3.weight"].T)) @ tensors[at + "feed_forward.w2.weight"].T
    return rms_norm(x, tensors["model.norm.weight"], eps) @ tensors["output.weight"].T
