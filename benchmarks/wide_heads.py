"""The same model with heads twice as wide, so that TurboMind's int4 KV cache, which heads of 64 end, can be measured.

    python benchmarks/wide_heads.py models/base --to models-wide/base
    turbopress conformance models-wide/base --kv 16,8,4 --reports benchmarks/results/wide      # on a GPU

Half of every new head is zeros, which add nothing to a score and nothing to an answer. RoPE turns the pair (j, j + D/2)
of a head of D channels by θ^(−2j/D); that is what it does to the pair (2j, 2j + D) of a head of 2D, so that is where
the pair goes. Attention divides by √(2D) in place of √D, so q is √2 times as large. An int4 cache stores the channels
that are not zero by the same numbers: the zeros lie between the least and the greatest, unless all of a head have one
sign. In a model of 16 bits q is rounded once more; nothing else differs.
"""

# D channels of an old head · 2D of a new one

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/serving.py would stand before the package

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.quantize.turbomind import require_servable
from pipelines.stage import new_artifact, one_line_errors, parent

ROPE_TYPES = ("default", "linear", "llama3")  # what they do to a frequency does not depend on the width of a head
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a stored model of 16 or 32 bits, in either layout")
    parser.add_argument("--to", type=Path, required=True, help="the new folder")
    told = parser.parse_args()
    with one_line_errors():
        write_wide(told.model, told.to)
    print(f"{told.to}: {told.model} with heads of {Checkpoint(told.to).config.head_dim}")


def write_wide(source: Path, out: Path) -> None:
    """An artifact that computes what the one in `source` does, in the same layout, with heads twice as wide."""
    made_from, checkpoint = parent(source), Checkpoint(source)
    _require_widenable(checkpoint)
    config = checkpoint.config.replace(head_dim=2 * checkpoint.config.head_dim)
    require_servable(config, checkpoint.layout, None, str(source))
    with new_artifact(
        out, kind=made_from.kind, recipe={**made_from.recipe, "head_dim": config.head_dim},
        parents={"from": made_from}, data=made_from.data, seed=made_from.seed, origin=made_from.origin,
    ) as folder:  # fmt: skip
        writer = ModelWriter(folder, config, checkpoint.layout)
        for n in range(config.num_layers):
            writer.layer(n, widened(checkpoint.tensors(checkpoint.layer_names(n)), checkpoint.config))
        writer.outer(checkpoint.tensors(checkpoint.outer_names()))
        writer.close()
        write_tokenizer(source, folder)


def _require_widenable(checkpoint: Checkpoint) -> None:
    """Refuses what would not compute the same."""
    rope = checkpoint.config.fields.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if checkpoint.quantization:
        raise CompressError(f"{checkpoint.folder}: is quantized; widen what it was quantized from")
    if checkpoint.config.family == "qwen3":
        raise CompressError(f"{checkpoint.folder}: qwen3 takes a norm over each head, which zeros would change")
    if kind not in ROPE_TYPES:
        raise CompressError(f"{checkpoint.folder}: rope_scaling {kind} depends on the width of heads; take another")


def widened(layer: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A decoder layer's tensors, with 2D channels a head where there were D; the others as they are."""
    return {name: _wide(name, tensor, config.head_dim) for name, tensor in layer.items()}


def _wide(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    module, kind = name.split(".", 3)[3].rsplit(".", 1)
    if module == "self_attn.o_proj" and kind == "weight":
        return spread(tensor.T, head_dim, in_pairs=False).T.contiguous()
    if module == "self_attn.v_proj":
        return spread(tensor, head_dim, in_pairs=False)
    if module in ROTATED:
        wide = spread(tensor, head_dim, in_pairs=True)
        return (wide.double() * 2**0.5).to(tensor.dtype) if module == ROTATED[0] else wide
    return tensor


def spread(rows: Tensor, head_dim: int, *, in_pairs: bool) -> Tensor:
    """Rows of heads of D with as many rows of zeros: for RoPE row j at 2j and row j + D/2 at 2j + D, else behind."""
    old = rows.unflatten(0, (-1, head_dim))
    new = torch.zeros(old.shape[0], 2 * head_dim, *old.shape[2:], dtype=rows.dtype)
    if in_pairs:
        new[:, 0:head_dim:2], new[:, head_dim::2] = old[:, : head_dim // 2], old[:, head_dim // 2 :]
    else:
        new[:, :head_dim] = old
    return new.flatten(0, 1)


if __name__ == "__main__":
    main()
