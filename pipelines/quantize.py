"""Stage `quantize`: a model's linears in 4 or 8 bits, in a format and in shapes that an engine serves.

`torchrun --nproc-per-node 2 -m pipelines.quantize …` spreads 4 bits over two GPUs. Killed, they go on where they were.
"""

import glob
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
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
from compress.quantize.recipe import AwqRecipe
from compress.quantize.resources import Resources, place_for_windows
from compress.quantize.schemes import Fp8Recipe, Int8Recipe
from compress.quantize.walk import quantize_model
from compress.quantize.workers import Workers
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
from registry.manifest import unfinished

Draw = Callable[[Rows, Path], None]
Quantize = Callable[[Path], tuple[Rows, Draw]]


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes quantize.KEY to OUT and what each linear lost to the folder TRACE."""
    recipe = load(repository_root()).quantize[key]
    origin, checkpoint = parent(source), Checkpoint(source)
    windows = None if isinstance(recipe, Fp8Recipe) else load_windows(calibration)
    config = checkpoint.config.replace(torch_dtype=TORCH_DTYPE if isinstance(recipe, Fp8Recipe) else "float16")
    require_servable(config, recipe, f"quantize.{key}")
    described, data = recipe.model_dump(by_alias=True, mode="json"), {"calibration": windows.digest} if windows else {}
    if trace.exists() and made_already(out, described, {"from": origin.digest}, data):
        return
    workers = Workers.started()
    made_by: dict[str, JsonValue] = {**versions(), "device": device(workers.rank), "workers": workers.count}
    resume = sha256_json([described, origin.digest, dict(data), made_by])
    journal = Journal(_journal(out, resume))
    quantize = quantizer(checkpoint, config, windows, recipe, workers, journal)
    if workers.rank:
        if not isinstance(recipe, AwqRecipe):
            return  # 8 bits are made by one process
        workers.wait()
        quantize(unfinished(out, resume))
        return
    try:
        with new_artifact(
            out, kind="quantized", recipe=described, parents={"from": origin}, data=data, seed=None,
            origin=origin.origin, key=resume,
        ) as folder:  # fmt: skip
            if isinstance(recipe, AwqRecipe):
                workers.wait()
            rows, draw = quantize(folder)
            write_tokenizer(source, folder)
            shutil.rmtree(trace, ignore_errors=True)  # of a run that was killed between here and the end
            write_trace(trace, rows, draw)
    finally:
        if not unfinished(out, resume).exists():
            journal.close()


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
    workers: Workers,
    journal: Journal,
) -> Quantize:
    """What writes the model into a folder, and returns what each linear lost and what draws it."""

    def quantize(folder: Path) -> tuple[Rows, Draw]:
        writer = ModelWriter(folder, config, recipe.layout)
        if windows is None:
            weights = quantize_to_fp8(checkpoint, writer, device=device(), progress=show)
            return [asdict(error) for error in weights], plots.weight_errors
        tokens = torch.from_numpy(windows.tokens)
        if isinstance(recipe, Int8Recipe):
            smoothed = quantize_to_int8(checkpoint, tokens, recipe, writer, device=device(), progress=show)
            return [asdict(error) for error in smoothed], plots.linear_errors
        assert isinstance(recipe, AwqRecipe)
        resources = Resources(device(workers.rank), workers=workers)
        place = place_for_windows(tokens.shape, config.fields["hidden_size"], recipe, resources, folder.parent)
        resources = replace(resources, disk=place)
        counted = None if windows.mask is None else torch.from_numpy(windows.predicts)
        errors = quantize_model(checkpoint, tokens, recipe, writer, resources, show, journal, counted)
        return [asdict(error) for error in errors], plots.linear_errors

    return quantize


def _journal(out: Path, key: str) -> Path:
    """Where this run's journal lies; those of runs with other inputs are swept away."""
    ours = out.with_name(f".{out.name}.journal-{key[:16]}")
    for stale in set(out.parent.glob(f".{glob.escape(out.name)}.journal-*")) - {ours}:
        shutil.rmtree(stale, ignore_errors=True)
    return ours


if __name__ == "__main__":
    run(main)
