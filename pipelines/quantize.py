"""Stage `quantize`: a model's linears in 4 or 8 bits, in a format and in shapes that an engine serves.

`torchrun --nproc-per-node 2 -m pipelines.quantize …` spreads 4 bits over two GPUs. Killed, they go on where they were.
"""

import glob
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import JsonValue

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import Windows, load_windows
from compress.quantize import pytorch_engine, turbomind
from compress.quantize.fp8 import TORCH_DTYPE, quantize_to_fp8
from compress.quantize.int8 import quantize_to_int8
from compress.quantize.journal import Journal
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.resources import Resources, place_for, place_for_windows
from compress.quantize.schemes import Fp8Recipe, Int8Recipe
from compress.quantize.walk import quantize_model
from compress.quantize.workers import Workers
from compress.room import room
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import (
    Rows,
    device,
    made_already,
    new_artifact,
    parent,
    repository_root,
    run,
    versions,
    write_trace,
)
from pipelines.variants import QuantizeVariant
from registry.hashing import sha256_json
from registry.manifest import Manifest, unfinished

Draw = Callable[[Rows, Path], None]
Quantize = Callable[[Path], tuple[Rows, Draw]]


@dataclass(frozen=True)
class Task:
    """A model folder, its manifest, and how it is quantized on what text; `place` is what messages call it."""

    source: Path
    origin: Manifest
    recipe: QuantizeVariant
    windows: Windows | None
    place: str

    @property
    def described(self) -> dict[str, JsonValue]:
        """The recipe as a manifest has it."""
        return self.recipe.model_dump(by_alias=True, mode="json")

    @property
    def data(self) -> dict[str, str]:
        """The digest of the text, where one was read."""
        return {"calibration": self.windows.digest} if self.windows else {}


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes quantize.KEY to OUT and what each linear lost to the folder TRACE."""
    recipe = load(repository_root()).quantize[key]
    windows = None if isinstance(recipe, Fp8Recipe) else load_windows(calibration)
    task = Task(source, parent(source), recipe, windows, f"quantize.{key}")
    require_servable(stored_config(Checkpoint(source), recipe), recipe, task.place)
    if trace.exists() and made_already(out, task.described, {"from": task.origin.digest}, task.data):
        return

    def keep(rows: Rows, draw: Draw) -> None:
        shutil.rmtree(trace, ignore_errors=True)  # of a run that was killed between here and the end
        write_trace(trace, rows, draw)

    make(task, out, keep)


def make(task: Task, out: Path, keep: Callable[[Rows, Draw], None]) -> None:
    """Writes the artifact to OUT, and gives what each linear lost to `keep`; killed, it goes on where it was."""
    recipe, workers = task.recipe, Workers.started()
    resources = Resources(device(workers.rank), batch=batch_of(recipe), workers=workers)
    made_by: dict[str, JsonValue] = {**versions(), **resources.decides}
    resume = sha256_json([task.described, task.origin.digest, {**task.data}, made_by])
    journal = Journal(_journal(out, resume))
    checkpoint = Checkpoint(task.source)
    quantize = quantizer(checkpoint, stored_config(checkpoint, recipe), task.windows, recipe, resources, journal)
    if workers.rank:
        if not isinstance(recipe, AwqRecipe):
            return  # 8 bits are made by one process
        workers.wait()
        quantize(unfinished(out, resume))
        return
    try:
        with room_for(recipe, task.place), new_artifact(
            out, kind="quantized", recipe=task.described, parents={"from": task.origin}, data=task.data, seed=None,
            origin=task.origin.origin, key=resume, made_on=resources.decides,
        ) as folder:  # fmt: skip
            if isinstance(recipe, AwqRecipe):
                workers.wait()
            rows, draw = quantize(folder)
            write_tokenizer(task.source, folder)
            keep(rows, draw)
    finally:
        if not unfinished(out, resume).exists():
            journal.close()


def stored_config(checkpoint: Checkpoint, recipe: QuantizeVariant) -> ModelConfig:
    """The model's configuration with the type of what stays in 16 bits."""
    return checkpoint.config.replace(torch_dtype=TORCH_DTYPE if isinstance(recipe, Fp8Recipe) else "float16")


def batch_of(recipe: QuantizeVariant) -> int:
    """Windows on the device at a time."""
    return 1 if isinstance(recipe, Fp8Recipe) else recipe.batch


def room_for(recipe: QuantizeVariant, place: str) -> AbstractContextManager[None]:
    """Where a device's memory runs out in here, what helps is said; what was finished waits for the next run."""
    helps = ["run again once others have left the device, and it goes on where it was"]
    if batch_of(recipe) > 1:
        helps.insert(0, f"write batch: {batch_of(recipe) // 2} (fewer windows at a time)")
    if isinstance(recipe, AwqRecipe) and isinstance(recipe.rounding, Learned) and recipe.rounding.batch > 1:
        helps.insert(0, f"write rounding.batch: {recipe.rounding.batch // 2} (fewer windows a step)")
    return room(place, ", or ".join(helps))


def require_servable(config: ModelConfig, recipe: QuantizeVariant, place: str) -> None:
    """Refuses what the engine that runs the recipe's format would not load."""
    layout, ranks = recipe.layout, recipe.tensor_parallel
    match recipe:
        case Int8Recipe():
            pytorch_engine.require_servable(config, layout, place, ranks)
        case Fp8Recipe():
            turbomind.require_servable(config, layout, turbomind.Weights("fp8", turbomind.BLOCK), place, ranks)
        case AwqRecipe():
            weights = turbomind.Weights(recipe.format, recipe.group_size)
            turbomind.require_servable(config, layout, weights, place, ranks)


def quantizer(
    checkpoint: Checkpoint,
    config: ModelConfig,
    windows: Windows | None,
    recipe: QuantizeVariant,
    resources: Resources,
    journal: Journal,
) -> Quantize:
    """What writes the model into a folder, and returns what each linear lost and what draws it."""

    def quantize(folder: Path) -> tuple[Rows, Draw]:
        writer = ModelWriter(folder, config, recipe.layout)
        if windows is None:
            weights = quantize_to_fp8(checkpoint, writer, resources, show, journal)
            return [asdict(error) for error in weights], plots.weight_errors
        tokens = torch.from_numpy(windows.tokens)
        counted = None if windows.mask is None else torch.from_numpy(windows.predicts)
        placed = replace(resources, disk=_place(tokens, config, recipe, resources, folder.parent))
        if isinstance(recipe, Int8Recipe):
            smoothed = quantize_to_int8(checkpoint, tokens, recipe, writer, placed, show, journal, counted)
            return [asdict(error) for error in smoothed], plots.linear_errors
        assert isinstance(recipe, AwqRecipe)
        errors = quantize_model(checkpoint, tokens, recipe, writer, placed, show, journal, counted)
        return [asdict(error) for error in errors], plots.linear_errors

    return quantize


def _place(
    tokens: torch.Tensor, config: ModelConfig, recipe: QuantizeVariant, resources: Resources, folder: Path
) -> Path | None:
    """A folder on disk for the windows to wait in, or None where memory has room for them."""
    windows, length = tokens.shape
    if isinstance(recipe, AwqRecipe):
        return place_for_windows((windows, length), config.fields["hidden_size"], recipe, resources, folder)
    return place_for(resources.host_bytes((windows, length, config.fields["hidden_size"])), folder)


def _journal(out: Path, key: str) -> Path:
    """Where this run's journal lies; those of runs with other inputs are swept away."""
    ours = out.with_name(f".{out.name}.journal-{key[:16]}")
    for stale in set(out.parent.glob(f".{glob.escape(out.name)}.journal-*")) - {ours}:
        shutil.rmtree(stale, ignore_errors=True)
    return ours


if __name__ == "__main__":
    run(main)
