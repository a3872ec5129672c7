"""Stage `distill`: a student trained to answer as its teacher does."""

from dataclasses import asdict
from pathlib import Path

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import write_model
from compress.corpus import load_windows
from compress.distill.train import distill_
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import device, new_artifact, parent, repository_root, run, write_trace


def main(key: str, source: Path, teacher: Path, distillation: Path, out: Path, trace: Path) -> None:
    """Writes distill.KEY to OUT and the loss of every step to the folder TRACE."""
    recipe = load(repository_root()).distill[key]
    parents, windows = {"from": parent(source), "teacher": parent(teacher)}, load_windows(distillation)
    student, guide = (load_model(folder, device=device()) for folder in (source, teacher))
    counted = None if windows.predicts is None else torch.from_numpy(windows.predicts)
    steps = distill_(student, guide, torch.from_numpy(windows.tokens).long(), recipe, progress=show, counted=counted)
    with new_artifact(
        out, kind="distilled", recipe=recipe.model_dump(by_alias=True, mode="json"), parents=parents,
        data={"distillation": windows.digest}, seed=recipe.seed, origin=parents["from"].origin,
    ) as folder:  # fmt: skip
        write_model(student, Checkpoint(source).config, folder)
        write_tokenizer(source, folder)
    write_trace(trace, [asdict(step) for step in steps], plots.loss)


if __name__ == "__main__":
    run(main)
