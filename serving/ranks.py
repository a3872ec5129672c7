"""Over how many GPUs LMDeploy 0.18 can spread a model: heads are not cut, nor what one kernel call takes of a linear.

The quantizer asks the same of what it will write (`compress.quantize.turbomind`); a test holds both against each other
over many shapes. Plain 16-bit kernels take any size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.shape import Shape

TENSOR_PARALLEL = (1, 2, 4, 8, 16)
LEAST_INPUTS = 128
BLOCK = 128  # of fp8: rows and columns that share a scale
INTERNLM2 = "InternLM2ForCausalLM"  # its q, k and v are one tensor, which the engine cuts at whole blocks


@dataclass(frozen=True)
class Kernels:
    """Sizes of one GPU's part of a linear, for every kind of GPU."""

    group_sizes: tuple[int, ...]  # none where the format has no groups
    inputs: int  # multiples of this, and of the group size
    outputs: int


KERNELS = {
    "awq": Kernels((128,), 64, 64),
    "gptq": Kernels((128,), 64, 64),
    "compressed-tensors": Kernels((32, 128), 64, 64),
    "fp8": Kernels((), BLOCK, BLOCK),
    "smooth_quant": Kernels((), 128, 1),
}


def problems(shape: Shape, tp: int) -> list[str]:
    """What keeps this model off `tp` GPUs, with the numbers of them that would do."""
    found = [*_format(shape), *_broken(shape, tp)]
    if tp == 1 or not _broken(shape, tp):
        return found
    legal = ", ".join(str(n) for n in TENSOR_PARALLEL if not _broken(shape, n))
    return [*found[:-1], f"{found[-1]}; legal are {legal}" if legal else f"{found[-1]}; no number of GPUs is legal"]


def splits(shape: Shape, tp: int) -> bool:
    """Whether each GPU gets whole heads; fewer kv heads than GPUs are repeated, a whole number of times."""
    return shape.heads % tp == 0 and (shape.kv_heads % tp == 0 or tp % shape.kv_heads == 0)


def _broken(shape: Shape, tp: int) -> list[str]:
    """What is wrong with this number of GPUs."""
    if not splits(shape, tp):
        return [f"tp {tp} does not divide {shape.heads} heads with {shape.kv_heads} kv heads"]
    kernels = KERNELS.get(shape.quant_method or "")
    return list(_sizes(shape, kernels, tp)) if kernels else []


def _format(shape: Shape) -> Iterator[str]:
    """What no number of GPUs would mend."""
    kernels = KERNELS.get(shape.quant_method or "")
    if kernels and kernels.group_sizes and shape.group_size not in kernels.group_sizes:
        legal = ", ".join(map(str, kernels.group_sizes))
        yield f"{shape.quant_method} group_size is {shape.group_size}, the engine takes {legal}"
    if shape.quant_method == "fp8":
        yield from _blocks(shape)


def _sizes(shape: Shape, kernels: Kernels, tp: int) -> Iterator[str]:
    inputs = max(kernels.inputs, (shape.group_size or 0) if kernels.group_sizes else 0)
    for name, (rows, columns) in _linears(shape, tp).items():
        if columns % inputs or columns < LEAST_INPUTS:
            yield f"tp {tp} gives {name} {columns:g} inputs a GPU, and its kernels take {_multiples(inputs)}"
        if rows % kernels.outputs:
            yield f"tp {tp} gives {name} {rows:g} outputs a GPU, and its kernels take {_multiples(kernels.outputs)}"


def _multiples(of: int) -> str:
    return f"multiples of {of}" + (f" from {LEAST_INPUTS} on" if of < LEAST_INPUTS else "")


def _linears(shape: Shape, tp: int) -> dict[str, tuple[float, float]]:
    """(outputs, inputs) of each linear on one of `tp` GPUs; a row-parallel linear splits its inputs."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    kv *= max(1, tp // shape.kv_heads)  # as the engine repeats them
    return {
        "q_proj": (q / tp, shape.hidden),
        "k_proj": (kv / tp, shape.hidden),
        "o_proj": (shape.hidden, q / tp),
        "gate_proj": (shape.inter / tp, shape.hidden),
        "down_proj": (shape.hidden, shape.inter / tp),
    }


def _blocks(shape: Shape) -> Iterator[str]:
    """Where blocks of rows and heads do not lie on each other: the engine turns q and k head by head."""
    if shape.architecture == INTERNLM2 and shape.head_dim != BLOCK:
        yield f"head_dim is {shape.head_dim}, fp8 in InternLM2's layout takes {BLOCK}; convert to layout llama"
    elif shape.head_dim < BLOCK:
        for name, heads in (("q_proj", shape.heads), ("k_proj", shape.kv_heads)):
            if heads * shape.head_dim % (2 * BLOCK):
                yield f"{name} has {heads} heads of {shape.head_dim}, blocks of {BLOCK} rows need a multiple of 4"
