"""What LMDeploy 0.18's TurboMind engine takes: one module that prune and quantize ask before they write.

Each rule was tried on the engine's own loader. Where it breaks one, the engine raises a traceback at best; a head size
without a kernel aborts the process.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from compress.checkpoint.config import LayoutName, ModelConfig
from compress.errors import CompressError

WeightFormat = Literal["awq", "compressed-tensors", "fp8", "int8"]
HEAD_DIMS = (64, 128, 192, 256)
ROPE_TYPES = {"internlm2": ("default", "linear", "dynamic")}
STOCK_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class Kernels:
    """What the kernels of a format take on every GPU, where the kinds of GPU differ: sizes are those of one rank."""

    group_sizes: tuple[int, ...]
    inputs: int  # multiples of this, and of the group size
    outputs: int


@dataclass(frozen=True)
class Weights:
    """How a model's linears are stored; blocks of 128×128 count as groups of 128."""

    format: WeightFormat
    group_size: int


LEAST_INPUTS = 128
BLOCK = 128
# Hopper wants 64 outputs where others take 8, and Ampere whole groups of inputs where Hopper takes 64; blocks must be
# whole because the engine joins the scales of fused linears.
KERNELS = {
    "awq": Kernels((128,), 64, 64),
    "compressed-tensors": Kernels((32, 128), 64, 64),
    "fp8": Kernels((BLOCK,), BLOCK, BLOCK),
}


def require_servable(
    config: ModelConfig, layout: LayoutName, weights: Weights | None, place: str, tensor_parallel: int = 1
) -> None:
    """Refuses, with every reason at once, a model that TurboMind would not load; `weights` None means 16 bits."""
    found = list(problems(config, layout, weights, tensor_parallel))
    if found:
        raise CompressError(f"{place}: TurboMind would not load this: " + "; ".join(found))


def problems(config: ModelConfig, layout: LayoutName, weights: Weights | None, tp: int) -> Iterator[str]:
    """Each rule that is broken, with the value and the legal ones."""
    yield from _attention(config, tp)
    yield from _spelling(config, layout)
    if weights is not None and weights.format not in KERNELS:
        yield f"{weights.format} weights are for LMDeploy's PyTorch engine, this one takes {_listed(KERNELS)}"
    elif weights is not None:
        yield from _kernels(config, weights, tp)
        if weights.format == "fp8":
            yield from _blocks(config, layout)


def _attention(config: ModelConfig, tp: int) -> Iterator[str]:
    if config.head_dim not in HEAD_DIMS:
        yield f"head_dim is {config.head_dim}, kernels exist for {_listed(HEAD_DIMS)}"
    if not _splits(config, tp):
        legal = [n for n in (1, 2, 4, 8) if _splits(config, n)]
        heads = f"{config.num_heads} heads with {config.num_kv_heads} kv heads"
        yield f"{heads} do not divide by tp {tp}, legal are {_listed(legal)}"


def _splits(config: ModelConfig, tp: int) -> bool:
    """Whether each rank gets whole heads; fewer kv heads than ranks are repeated, a whole number of times."""
    kv_heads = config.num_kv_heads
    return config.num_heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)


def _spelling(config: ModelConfig, layout: LayoutName) -> Iterator[str]:
    rope = config.fields.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    legal = ROPE_TYPES.get(layout, STOCK_ROPE_TYPES)
    if rope_type not in legal:
        yield f"rope_scaling {rope_type} in layout {layout}, legal are {_listed(legal)}"
    if layout == "internlm2" and config.fields.get("attention_bias"):
        yield "layout internlm2 with biases fails in LMDeploy 0.18, use layout llama"


def _kernels(config: ModelConfig, weights: Weights, tp: int) -> Iterator[str]:
    kernels = KERNELS[weights.format]
    if weights.group_size not in kernels.group_sizes:
        legal = _listed(kernels.group_sizes)
        yield f"{weights.format} group_size is {weights.group_size}, the engine takes {legal}"
        return
    inputs = max(kernels.inputs, weights.group_size)
    for name, (rows, columns) in _linears(config, tp).items():
        if columns % inputs or columns < LEAST_INPUTS:
            nearest = _around(columns, inputs, LEAST_INPUTS)
            yield f"{name} has {columns:g} inputs a rank, the nearest legal are {nearest}"
        if rows % kernels.outputs:
            yield f"{name} has {rows:g} outputs a rank, the nearest legal are {_around(rows, kernels.outputs)}"


def _blocks(config: ModelConfig, layout: LayoutName) -> Iterator[str]:
    """Where blocks of rows and heads do not lie on each other: the engine turns q and k head by head."""
    if layout == "internlm2" and config.head_dim != BLOCK:
        yield f"head_dim is {config.head_dim}, fp8 in layout internlm2 takes {BLOCK}, use layout llama"
    elif config.head_dim < BLOCK:
        for name, heads in (("q_proj", config.num_heads), ("k_proj", config.num_kv_heads)):
            if heads * config.head_dim % (2 * BLOCK):
                yield f"{name} has {heads} heads of {config.head_dim}, blocks of {BLOCK} rows need a multiple of 4"


def _linears(config: ModelConfig, tp: int) -> dict[str, tuple[float, float]]:
    """(outputs, inputs) of each linear on one of `tp` ranks; a row-parallel linear splits its inputs."""
    hidden, inter = float(config.fields["hidden_size"]), float(config.fields["intermediate_size"])
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    kv = kv * max(1, tp // config.num_kv_heads)  # as the engine repeats them
    return {
        "q_proj": (q / tp, hidden),
        "k_proj": (kv / tp, hidden),
        "o_proj": (hidden, q / tp),
        "gate_proj": (inter / tp, hidden),
        "down_proj": (hidden, inter / tp),
    }


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _around(size: float, multiple: int, least: int = 1) -> str:
    below = int(size // multiple) * multiple
    return f"{below} and {below + multiple}" if below >= least else f"{max(multiple, least)} and up"
