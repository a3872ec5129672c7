"""Stage `quantize`: a model's linears in 4 or 8 bits, in a format and in shapes that an engine serves."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import Windows, load_windows
from compress.quantize import pytorch_engine, turbomind
from compress.quantize.fp8 import TORCH_DTYPE, quantize_to_fp8
from compress.quantize.int8 import quantize_to_int8
from compress.quantize.recipe import AwqRecipe
from compress.quantize.schemes import Fp8Recipe, Int8Recipe
from compress.quantize.walk import quantize_model
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import Rows, device, new_artifact, parent, repository_root, run, write_trace
from pipelines.variants import QuantizeVariant

Draw = Callable[[Rows, Path], None]


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes quantize.KEY to OUT and what each linear lost to the folder TRACE."""
    recipe = load(repository_root()).quantize[key]
    origin, checkpoint = parent(source), Checkpoint(source)
    windows = None if isinstance(recipe, Fp8Recipe) else load_windows(calibration)
    config = checkpoint.config.replace(torch_dtype=TORCH_DTYPE if isinstance(recipe, Fp8Recipe) else "float16")
    require_servable(config, recipe, f"quantize.{key}")
    with new_artifact(
        out, kind="quantized", recipe=recipe.model_dump(by_alias=True, mode="json"), parents={"from": origin},
        data={"calibration": windows.digest} if windows else {}, seed=None, origin=origin.origin,
    ) as folder:  # fmt: skip
        rows, draw = quantize(checkpoint, windows, recipe, ModelWriter(folder, config, recipe.layout))
        write_tokenizer(source, folder)
    write_trace(trace, rows, draw)


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


def quantize(
    checkpoint: Checkpoint, windows: Windows | None, recipe: QuantizeVariant, writer: ModelWriter
) -> tuple[Rows, Draw]:
    """Writes the model; returns what each linear lost and what draws it."""
    if windows is None:
        weights = quantize_to_fp8(checkpoint, writer, device=device(), progress=show)
        return [asdict(error) for error in weights], plots.weight_errors
    tokens = torch.from_numpy(windows.tokens)
    if isinstance(recipe, Int8Recipe):
        smoothed = quantize_to_int8(checkpoint, tokens, recipe, writer, device=device(), progress=show)
        return [asdict(error) for error in smoothed], plots.linear_errors
    assert isinstance(recipe, AwqRecipe)
    errors = quantize_model(checkpoint, tokens, recipe, writer, device=device(), progress=show)
    return [asdict(error) for error in errors], plots.linear_errors


if __name__ == "__main__":
    run(main)
