"""The sizes of a pruned model: what was wished for, held against what TurboMind takes.

Of what a source breaks already, a pruned model may keep what it does not touch: a base that cannot be quantized in
groups may lose layers. What pruning changes must be right. Sizes hang together, so they are found one after the other:
what the heads that stay leave legal is what hidden_size can be.
"""

from collections.abc import Mapping
from types import MappingProxyType

from compress.checkpoint.config import ModelConfig
from compress.errors import CompressError
from compress.prune.recipe import Contract, Size
from compress.quantize.turbomind import WeightFormat, Weights, problems

FORMAT_OF_GROUPS: Mapping[int, WeightFormat] = {128: "awq", 32: "compressed-tensors"}
FIELDS = {"intermediate_size": "intermediate_size", "kv_heads": "num_key_value_heads", "hidden_size": "hidden_size"}
Sizes = Mapping[str, int]  # by the recipe's names
AS_THEY_WERE: Sizes = MappingProxyType({})
IN_TURN = ("kv_heads", "hidden_size", "intermediate_size")


def size_of(config: ModelConfig, name: str) -> int:
    """A size of a model by the recipe's name."""
    return int(config.fields[FIELDS[name]])


def with_size(config: ModelConfig, name: str, size: int) -> ModelConfig:
    """The configuration with one size changed; query heads go with their kv head."""
    if name == "kv_heads":
        group = config.num_heads // config.num_kv_heads
        return config.replace(num_key_value_heads=size, num_attention_heads=size * group)
    return config.replace(**{FIELDS[name]: size})


def with_sizes(config: ModelConfig, sizes: Sizes) -> ModelConfig:
    """The configuration with several sizes changed."""
    for name, size in sizes.items():
        config = with_size(config, name, size)
    return config


def broken(config: ModelConfig, source: ModelConfig, contract: Contract) -> list[str]:
    """What TurboMind or transformers would refuse: in 16 bits anything, in 4 what the source did not break."""
    tp = contract.tensor_parallel
    found = list(problems(config, "llama", None, tp))
    if size_of(config, "hidden_size") % config.num_heads:  # transformers refuses it, whatever head_dim says
        found.append(f"hidden_size {size_of(config, 'hidden_size')} is no multiple of the {config.num_heads} heads")
    if contract.group_size is not None:
        later = Weights(FORMAT_OF_GROUPS[contract.group_size], contract.group_size)
        before = set(problems(source, "llama", later, tp))
        found += [told for told in problems(config, "llama", later, tp) if told not in before and told not in found]
    return found


def legal_sizes(source: ModelConfig, name: str, contract: Contract, chosen: Sizes = AS_THEY_WERE) -> list[int]:
    """Every size below the source's that TurboMind takes beside those that are chosen already, rising."""
    config = with_sizes(source, chosen)
    return [
        size for size in range(1, size_of(source, name)) if not broken(with_size(config, name, size), source, contract)
    ]


def resolved(
    source: ModelConfig, name: str, wish: Size, contract: Contract, place: str, chosen: Sizes = AS_THEY_WERE
) -> int:
    """The size for a wish: a number as it is, if it is legal; a share as the nearest legal size."""
    now, legal = size_of(source, name), legal_sizes(source, name, contract, chosen)
    goal = wish if isinstance(wish, int) else wish * now
    if isinstance(wish, int) and wish in legal:
        return wish
    beside = " beside " + ", ".join(f"{other} {size}" for other, size in chosen.items()) if chosen else ""
    fits = f"for tensor_parallel {contract.tensor_parallel} and groups of {contract.group_size}{beside}"
    if not legal:
        config = with_sizes(source, chosen)
        told = broken(config, source, contract)  # whatever this size is
        reason = told or [*broken(with_size(config, name, max(1, int(goal))), source, contract), f"leave {name} out"]
        raise CompressError(f"{place}.{name}: no size below {now} is legal {fits}: {'; '.join(reason)}")
    if isinstance(wish, int):
        nearest = " and ".join(map(str, _around(legal, goal)))
        raise CompressError(f"{place}.{name}: {wish} of {now} is not legal {fits}; the nearest legal are {nearest}")
    return min(legal, key=lambda size: (abs(size - goal), size))


def all_resolved(source: ModelConfig, wishes: Mapping[str, Size], contract: Contract, place: str) -> Sizes:
    """The sizes for several wishes, legal together; each is held against those found before it."""
    found: dict[str, int] = {}
    for name in (name for name in IN_TURN if name in wishes):
        found[name] = resolved(source, name, wishes[name], contract, place, found)
    return {name: found[name] for name in wishes}


def _around(legal: list[int], goal: int | float) -> list[int]:
    """The legal sizes next to one that is not."""
    return [size for size in legal[::-1] if size < goal][:1] + [size for size in legal if size > goal][:1]
