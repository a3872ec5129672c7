"""The frequencies by which TurboMind turns positions, and those of transformers: a program of LMDeploy's interpreter.

It reads JSON from standard input: folders with the `rope_theta` and `rope_scaling` that are meant there. LMDeploy's own
parser reads a folder, and the engine's library makes the kernels' parameters of that; both run without a GPU.
"""

import ctypes
import json
import struct
import sys
from pathlib import Path

import ftc  # noqa: F401 - the emulated runtime, before the engine
import torch
from lmdeploy.archs import get_model_arch
from lmdeploy.turbomind.models.utils import make_attention_config, source_model_config
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LIBRARY, PARAMETERS = sys.argv[1], "_ZN9turbomind22init_rope_kernel_paramERKNS_4core10RopeConfigERNS_15RopeKernelParamE"
YARN, LLAMA3 = 4, 5


def engine(folder):
    """As the kernels compute them: a base, divided where the kind divides."""
    rope = make_attention_config(source_model_config(get_model_arch(folder)[1])).rope
    names = ("yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "llama3_low_freq_factor")
    floats = [getattr(rope, name) for name in (*names, "llama3_high_freq_factor")]
    told = struct.pack(
        "<ififi5fi", rope.type, rope.base, rope.dim, rope.factor, rope.max_position_embeddings, *floats,
        rope.llama3_original_max_position_embeddings,
    )  # fmt: skip
    made = ctypes.create_string_buffer(256)
    getattr(ctypes.CDLL(LIBRARY), PARAMETERS)(ctypes.create_string_buffer(told + bytes(64)), made)
    scale, inverse = struct.unpack_from("<2f", made.raw, 0x14)
    i = torch.arange(0, rope.dim, 2, dtype=torch.float64)
    plain = 2 ** (scale * i)
    if rope.type == YARN:
        half, least = struct.unpack_from("<2f", made.raw, 0x24)
        return plain * (1 - (i * half - least).clamp(0, 1) * (1 - inverse))
    if rope.type == LLAMA3:
        alpha, beta = struct.unpack_from("<2f", made.raw, 0x30)
        smooth = (alpha * plain - beta).clamp(0, 1)
        return plain * ((1 - smooth) * inverse + smooth)
    return plain * inverse


def meant(folder, rope):
    """As transformers computes them."""
    sizes = json.loads(Path(folder, "config.json").read_text("utf8"))
    names = ("hidden_size", "num_attention_heads", "max_position_embeddings")
    config = LlamaConfig(**{name: sizes[name] for name in names}, **rope)
    kind = (config.rope_scaling or {}).get("rope_type", "default")
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].double()


def compared(folder, rope):
    """How far they are apart at most, as a share; or the engine's last words."""
    try:
        found = engine(folder)
    except (RuntimeError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return float((found / meant(folder, rope) - 1).abs().max())


print(json.dumps([compared(**case) for case in json.load(sys.stdin)]))
