"""Stage `generate`: a text that a model writes itself, as token windows."""

from pathlib import Path

import torch

from compress.checkpoint.load import load_model
from compress.corpus import Windows, load_windows, save_windows
from compress.distill.generate import generate
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
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    tokens = generate(load_model(model, dtype, device()), torch.from_numpy(begun.tokens).long(), recipe, show)
    domains = [begun.domains[n % len(begun.domains)] for n in range(recipe.windows)]
    with fresh_folder(out) as folder:
        save_windows(Windows(tokens.numpy().astype(begun.tokens.dtype), domains), folder)


if __name__ == "__main__":
    run(main)
