"""What a teacher says, kept on disk: it runs once and alone, and the student then has the device for itself.

`hidden` keeps what the teacher's head reads, from which all its logits come again: nothing is lost, and it is
`vocab / hidden` times smaller than logits. `top_k` keeps the likeliest entries' log-probabilities. A file a window:
what is there is there, whenever the making stops.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Integer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoint.whole_file import write_whole
from compress.distill.fused import FromHidden, FromTop
from compress.distill.recipe import Cache, DistillRecipe, TopK
from compress.distill.stream import run
from compress.distill.teachers import Said
from compress.errors import CompressError
from compress.progress import Progress, silent

BATCH = 8  # windows that the teacher sees at once


@dataclass(frozen=True)
class CachedHidden:
    """A teacher's final hidden states by window, and its head."""

    folder: Path
    head: Float[Tensor, "vocab hidden"]

    @property
    def vocab_size(self) -> int:
        return self.head.shape[0]

    def says(self, tokens: Integer[Tensor, "windows length"], windows: list[int]) -> Said:
        """The windows' states, found by number; of each as many positions as there are tokens."""
        (ht,) = _found(self.folder, windows, tokens, "hidden")
        return Said(FromHidden(ht, self.head))


@dataclass(frozen=True)
class CachedTopK:
    """A teacher's likeliest entries by window."""

    folder: Path
    vocab_size: int

    def says(self, tokens: Integer[Tensor, "windows length"], windows: list[int]) -> Said:
        """The windows' entries, found by number."""
        lt, ids = _found(self.folder, windows, tokens, "log_p", "ids")
        return Said(FromTop(lt, ids.long()))


@torch.no_grad()
def fill(
    folder: Path,
    teacher: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    recipe: DistillRecipe,
    progress: Progress = silent,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Writes what is not there yet of the windows' files; of several processes each its `share`, (number, count)."""
    assert recipe.cache is not None
    folder.mkdir(parents=True, exist_ok=True)
    device = teacher.device
    missing = [n for n in range(len(tokens)) if not _file(folder, n).exists()][share[0] :: share[1]]
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    for batch in progress(batches, "batch of the teacher"):
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            final = run(teacher, tokens[batch].to(device)).final
        for n, hidden in zip(batch, final, strict=True):
            tensors = _kept(hidden, teacher.lm_head.weight, recipe.cache, recipe.precision)
            write_whole(_file(folder, n), tensors, kept="the windows before it stay cached")


def cached(folder: Path, head: Float[Tensor, "vocab hidden"], cache: Cache) -> CachedHidden | CachedTopK:
    """The teacher that `fill` has put into a folder; its head stays on the device only where it is needed."""
    return CachedTopK(folder, head.shape[0]) if isinstance(cache, TopK) else CachedHidden(folder, head)


def _kept(hidden: Tensor, head: Tensor, cache: Cache, precision: str) -> dict[str, Tensor]:
    """Of one window: in bf16 what will be multiplied in bf16, so that nothing is lost that would have been used."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if not isinstance(cache, TopK):
        return {"hidden": hidden.to(dtype)}
    parts = [((h.to(dtype) @ head.to(dtype).t()).float().log_softmax(-1)).topk(cache.top_k) for h in hidden.split(256)]
    return {
        "log_p": torch.cat([part.values for part in parts]),
        "ids": torch.cat([part.indices for part in parts]).int(),
    }


def _found(folder: Path, windows: list[int], tokens: Tensor, *names: str) -> list[Tensor]:
    """Tensors of some windows' files, one after another, on the tokens' device."""
    stored = []
    for n in windows:
        try:
            stored.append(load_file(_file(folder, n)))
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise CompressError(f"{_file(folder, n)}: not read ({error}); remove it and run again") from None
    return [torch.cat([window[name] for window in stored]).to(tokens.device, non_blocking=True) for name in names]


def _file(folder: Path, window: int) -> Path:
    return folder / f"window-{window:06d}.safetensors"
