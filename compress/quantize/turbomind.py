"""What LMDeploy 0.18's TurboMind engine takes: one module that prune and quantize ask before they write.

Each rule was tried on the engine's own loader. Where it breaks one, the engine raises a traceback at best; a head size
without a kernel aborts the process.
"""

from collections.abc import Iterable, Iterator

from compress.checkpoint.config import LayoutName, ModelConfig
from compress.errors import CompressError

HEAD_DIMS = (64, 128, 192, 256)
GROUP_SIZE = 128
OUTPUT_MULTIPLE = 64  # Hopper's kernels; others take 8
ROPE_TYPES = {"internlm2": ("default", "linear", "dynamic")}
STOCK_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def require_servable(
    config: ModelConfig, layout: LayoutName, group_size: int | None, place: str, tensor_parallel: int = 1
) -> None:
    """Refuses, with every reason at once, a model that TurboMind would not load; `group_size` None means 16 bits."""
    found = list(problems(config, layout, group_size, tensor_parallel))
    if found:
        raise CompressError(f"{place}: TurboMind would not load this: " + "; ".join(found))


def problems(config: ModelConfig, layout: LayoutName, group_size: int | None, tp: int) -> Iterator[str]:
    """Each rule that is broken, with the value and the legal ones."""
    yield from _attention(config, tp)
    yield from _spelling(config, layout)
    if group_size is not None:
        yield from _awq(config, group_size, tp)


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


def _awq(config: ModelConfig, group_size: int, tp: int) -> Iterator[str]:
    if group_size != GROUP_SIZE:
        yield f"AWQ group_size is {group_size}, the engine takes {GROUP_SIZE}"
    for name, (rows, columns) in _linears(config, tp).items():
        if columns % GROUP_SIZE:
            yield f"{name} has {columns:g} inputs a rank, the nearest legal are {_around(columns, GROUP_SIZE)}"
        if rows % OUTPUT_MULTIPLE:
            yield f"{name} has {rows:g} outputs a rank, the nearest legal are {_around(rows, OUTPUT_MULTIPLE)}"


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


def _around(size: float, multiple: int) -> str:
    below = int(size // multiple) * multiple
    return f"{below} and {below + multiple}" if below else f"{multiple} and up"
