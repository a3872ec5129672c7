"""Stage `reference`: the base's final hidden states on the evaluation windows, which every variant is compared with."""

from pathlib import Path

import torch

from compress.checkpoint.load import load_model
from compress.corpus import load_windows
from compress.evaluate.replay import save_hidden
from pipelines.progress import show
from pipelines.stage import device, parent, run
from registry.manifest import fresh_folder


def main(base: Path, evaluation: Path, out: Path) -> None:
    """Writes the states to OUT, with the digests of the base and of the tokens."""
    artifact, windows = parent(base), load_windows(evaluation)
    tokens = torch.from_numpy(windows.tokens).long().to(device())
    model = load_model(base, device=device())
    about = {"base": artifact.digest, "evaluation": windows.digest}
    with fresh_folder(out) as folder:
        save_hidden(model, tokens, folder, about=about, progress=show)


if __name__ == "__main__":
    run(main)
