"""Stage `distill`: a student trained to answer as its teacher does; a 4-bit student stays in its format."""

from dataclasses import asdict
from pathlib import Path

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import write_model
from compress.corpus import load_windows
from compress.distill.quantized import load_quantized, write_quantized
from compress.distill.train import distill_
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import device, new_artifact, parent, repository_root, run, write_trace
from registry.manifest import Kind


def main(key: str, source: Path, teacher: Path, distillation: Path, out: Path, trace: Path) -> None:
    """Writes distill.KEY to OUT and the loss of every step to the folder TRACE."""
    recipe = load(repository_root()).distill[key]
    parents, windows = {"from": parent(source), "teacher": parent(teacher)}, load_windows(distillation)
    guide, train = load_model(teacher, device=device()), recipe.train
    student = load_model(source, device=device()) if train is None else load_quantized(source, train, device())
    counted = None if windows.predicts is None else torch.from_numpy(windows.predicts)
    steps = distill_(student, guide, torch.from_numpy(windows.tokens).long(), recipe, progress=show, counted=counted)
    kind: Kind = "distilled" if train is None else "repaired"
    with new_artifact(
        out, kind=kind, recipe=recipe.model_dump(by_alias=True, mode="json"), parents=parents,
        data={"distillation": windows.digest}, seed=recipe.seed, origin=parents["from"].origin,
    ) as folder:  # fmt: skip
        if train is None:
            write_model(student, Checkpoint(source).config, folder)
        else:
            write_quantized(student, source, folder)
        write_tokenizer(source, folder)
    write_trace(trace, [asdict(step) for step in steps], plots.loss)


if __name__ == "__main__":
    run(main)
