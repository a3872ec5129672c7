"""Stage `generate`: a text that a model writes itself, as token windows."""

from pathlib import Path

import numpy as np
import torch

from compress.checkpoint.load import load_model
from compress.corpus import Windows, load_windows, save_windows
from compress.distill.generate import generate
from compress.distill.recipe import GenerateRecipe
from compress.errors import CompressError
from compress.room import room
from pipelines.params import load
from pipelines.precision import fitted
from pipelines.progress import show
from pipelines.stage import device, parent, repository_root, run
from registry.manifest import fresh_folder


def main(key: str, model: Path, prompts: Path, out: Path) -> None:
    """Writes the windows of generate.KEY to OUT, in the words of MODEL after the beginnings of PROMPTS."""
    recipe = fitted(load(repository_root()).generate[key], device())
    parent(model)
    begun = load_windows(prompts)
    if recipe.with_prompts and begun.tokens.shape[1] != recipe.length:
        raise CompressError(
            f"generate.{key}.length: {recipe.length}, and the windows of {recipe.prompts} that come along have "
            f"{begun.tokens.shape[1]}; write that, or leave with_prompts out"
        )
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    with room(f"generate.{key}", _remedy(recipe)):
        tokens = generate(load_model(model, dtype, device()), torch.from_numpy(begun.tokens).long(), recipe, show)
    domains = [begun.domains[n % len(begun.domains)] for n in range(recipe.windows)]
    own = Windows(tokens.numpy().astype(begun.tokens.dtype), domains)
    with fresh_folder(out) as folder:
        save_windows(_mixed(own, begun, recipe.seed) if recipe.with_prompts else own, folder)


def _remedy(recipe: GenerateRecipe) -> str:
    """What helps where the model, or the windows that it is writing, have no room on the device."""
    helps, at_once = ["set TURBOPRESS_DEVICE=cpu"], min(recipe.batch, recipe.windows)
    if recipe.precision == "float32":
        helps.insert(0, "write precision: bf16 (weights, keys and values take half)")
    if at_once > 1:
        helps.insert(0, f"write batch: {at_once // 2} (fewer windows at once)")
    return ", or ".join(helps)


def _mixed(own: Windows, begun: Windows, seed: int) -> Windows:
    """Both in an order that is drawn: some stages look at a text's first windows only. Of its own all tokens count."""
    order = np.random.default_rng(seed).permutation(len(own.tokens) + len(begun.tokens))
    tokens, domains = np.concatenate([own.tokens, begun.tokens]), [*own.domains, *begun.domains]
    mask = None if begun.mask is None else np.concatenate([np.ones_like(own.tokens, begun.mask.dtype), begun.mask])
    return Windows(tokens[order], [domains[n] for n in order], mask=None if mask is None else mask[order])


if __name__ == "__main__":
    run(main)
