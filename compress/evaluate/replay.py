"""The base's final hidden states, kept once for all variants, from which its logits come again exactly.

Logits of the whole vocabulary are `vocab / hidden` times as many numbers as the states they are made of: for
InternLM2-1.8B 92,544 against 2,048. Kept in float32 the states are 22 times smaller than logits in half of it, and
nothing is cut off: the divergence is over every entry.
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

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.whole_file import write_whole
from compress.distill.stream import final_hidden
from compress.errors import CompressError
from compress.progress import Progress, silent

BATCH = 8  # windows of a file, and of the batch that is scored beside it
ABOUT = "about.json"


@dataclass(frozen=True)
class CachedReference:
    """The base as far as scoring needs it: stored hidden states, and the head that turns them into logits."""

    folder: Path
    head: Tensor

    def hidden(self, start: int, tokens: Tensor) -> Tensor:
        """The states of the windows from number `start` on, which must begin a file."""
        path = self.folder / _file(start)
        try:
            stored = load_file(path)["hidden"]
        except (OSError, KeyError, SafetensorError) as error:
            raise CompressError(f"{path}: no hidden states ({error}); run `dvc repro --force reference`") from None
        if stored.shape[:2] != tokens.shape:
            shapes = f"{tuple(stored.shape[:2])}, not of {tuple(tokens.shape)}"
            raise CompressError(f"{path}: holds states of windows {shapes}; run `dvc repro --force reference`")
        return stored.to(self.head.device)


@torch.no_grad()
def save_hidden(
    model: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    folder: Path,
    *,
    about: dict[str, str],
    progress: Progress = silent,
) -> None:
    """Writes what the model's head reads for every window, a file a batch, and what it was made from."""
    for start in progress(range(0, tokens.shape[0], BATCH), "batch"):
        write_whole(folder / _file(start), {"hidden": final_hidden(model, tokens[start : start + BATCH]).float()})
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", "utf8")


def load_reference(folder: Path, base: Path, about: dict[str, str], device: str) -> CachedReference:
    """The stored states with the head of the base, refused when they were made from anything else than `about`."""
    try:
        said = json.loads((folder / ABOUT).read_text("utf8"))
    except (OSError, ValueError) as error:
        raise CompressError(f"{folder}: no hidden states ({error}); run `dvc repro reference`") from None
    if said != about:
        raise CompressError(f"{folder}: states of {said}, not of {about}; run `dvc repro --force reference`")
    return CachedReference(folder, head_weight(base).to(device))


def head_weight(folder: Path) -> Float[Tensor, "vocab hidden"]:
    """The output head of a stored float model in float32; tied, it is the embedding."""
    checkpoint = Checkpoint(folder)
    name = "model.embed_tokens.weight" if checkpoint.config.tied else "lm_head.weight"
    return checkpoint.tensors([name])[name].float()


def _file(start: int) -> str:
    return f"hidden-{start // BATCH:05d}.safetensors"
