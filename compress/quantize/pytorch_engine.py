"""What LMDeploy 0.18's PyTorch engine takes of 8-bit whole-number weights, read in its source and not tried on it.

TurboMind does not run them. The engine needs no more of a shape than its kernels: they read inputs in blocks and leave
what is beyond the last one undefined.
"""

from collections.abc import Iterator

from compress.checkpoint.config import LayoutName, ModelConfig
from compress.errors import CompressError

INPUT_BLOCK = 128


def require_servable(config: ModelConfig, layout: LayoutName, place: str, tensor_parallel: int = 1) -> None:
    """Refuses, with every reason at once, a model in 8-bit whole numbers that the engine would not run."""
    found = list(problems(config, layout, tensor_parallel))
    if found:
        raise CompressError(f"{place}: LMDeploy's PyTorch engine would not run this: " + "; ".join(found))


def problems(config: ModelConfig, layout: LayoutName, tp: int) -> Iterator[str]:
    """Each rule that is broken, with the value and the legal ones."""
    heads, kv_heads, hidden = config.num_heads, config.num_kv_heads, int(config.fields["hidden_size"])
    if heads % tp or (kv_heads % tp and tp % kv_heads):
        yield f"{heads} heads with {kv_heads} kv heads do not divide by tp {tp}"
    if layout == "internlm2" and config.head_dim * heads != hidden:
        yield f"head_dim is {config.head_dim}, in layout internlm2 it is taken for {hidden // heads}; use layout llama"
    inputs = {
        "q_proj": hidden,
        "o_proj": heads * config.head_dim / tp,
        "down_proj": int(config.fields["intermediate_size"]) / tp,
    }
    for name, columns in inputs.items():
        if columns % INPUT_BLOCK:
            yield f"{name} has {columns:g} inputs a rank, legal are multiples of {INPUT_BLOCK}"
