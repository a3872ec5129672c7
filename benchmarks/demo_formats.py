"""What each weight format costs the demo base, from the folder that was written, all on the same windows.

    dvc repro fetch corpus && python benchmarks/demo_formats.py && python benchmarks/readme.py

The 4-bit rows have the default recipe; two of them keep linears in 16 bits. `fp8` is measured twice: with the inputs as
they are, and with each token's inputs rounded to float8 in groups of 128 channels: on a Hopper card TurboMind's kernels
take float8 inputs. Writes benchmarks/results/demo_formats.json, from which the table of docs/formats.md is made.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.corpus import load_windows
from compress.evaluate.compare import compare_models
from compress.evaluate.size import sizes
from compress.quantize.fp8 import TORCH_DTYPE, quantize_to_fp8
from compress.quantize.int8 import quantize_to_int8
from compress.quantize.recipe import AwqRecipe
from compress.quantize.schemes import Int8Recipe
from compress.quantize.sites import LINEARS
from compress.quantize.walk import quantize_model

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo_formats.json"
BASE = ROOT / "models" / "base"
FLOAT8 = torch.float8_e4m3fn

Write = Callable[[Checkpoint, Tensor, ModelWriter], object]


def awq(**settings: object) -> Write:
    recipe = AwqRecipe.model_validate(settings)
    return lambda checkpoint, tokens, writer: quantize_model(checkpoint, tokens, recipe, writer)


def int8(**settings: object) -> Write:
    recipe = Int8Recipe.model_validate({"method": "int8", **settings})
    return lambda checkpoint, tokens, writer: quantize_to_int8(checkpoint, tokens, recipe, writer)


def fp8(checkpoint: Checkpoint, tokens: Tensor, writer: ModelWriter) -> object:
    return quantize_to_fp8(checkpoint, writer)


FORMATS: dict[str, tuple[Write, str]] = {
    "awq, group 128": (awq(), "float16"),
    "awq, kept by error": (awq(keep={"by": "error", "most": 0.08}), "float16"),
    "awq, kept by size": (awq(keep={"by": "size", "most_megabytes": 2}), "float16"),
    "compressed-tensors, group 32": (awq(group_size=32, format="compressed-tensors"), "float16"),
    "int8 (W8A8), not smoothed": (int8(smooth=None), "float16"),
    "int8 (W8A8)": (int8(), "float16"),
    "fp8": (fp8, TORCH_DTYPE),
}


def rounded_to_float8(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first argument with each token's groups of 128 channels on scales of their own."""
    groups = args[0].unflatten(-1, (-1, 128))
    s = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / torch.finfo(FLOAT8).max
    return ((groups / s).to(FLOAT8).to(groups.dtype) * s).flatten(-2), *args[1:]


def main() -> None:
    """Measures every format and prints the table."""
    calibration, evaluation = (
        torch.from_numpy(load_windows(ROOT / "data" / n).tokens) for n in ("calibration", "evaluation")
    )
    base, rows = load_model(BASE), []

    def measure(name: str, model: nn.Module, folder: Path) -> None:
        means = compare_models(model, base, evaluation.long()).means()
        bits = sizes(folder)["bits_per_linear_weight"]
        rows.append({"format": name, "bits_per_linear_weight": bits, **means})

    for name, (write, dtype) in FORMATS.items():
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint, folder = Checkpoint(BASE), Path(temporary)
            write(checkpoint, calibration, ModelWriter(folder, checkpoint.config.replace(torch_dtype=dtype), "llama"))
            model = load_model(folder)
            measure(name, model, folder)
            if name == "fp8":
                for place, module in model.named_modules():
                    if place.endswith(LINEARS):
                        module.register_forward_pre_hook(rounded_to_float8)
                measure("fp8, inputs rounded as on Hopper", model, folder)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(row["format"], *(f"{value:.4f}" for key, value in row.items() if key != "format"))
    Console().print(table)


if __name__ == "__main__":
    main()
