"""Stage `quantize`: a model's linears in 4 bits, in the format and the shapes that TurboMind serves."""

from dataclasses import asdict
from pathlib import Path

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import load_windows
from compress.quantize.turbomind import require_servable
from compress.quantize.walk import quantize_model
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import device, new_artifact, parent, repository_root, run, write_trace


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes quantize.KEY to OUT and what each linear lost to the folder TRACE."""
    recipe = load(repository_root()).quantize[key]
    origin, windows, checkpoint = parent(source), load_windows(calibration), Checkpoint(source)
    config = checkpoint.config.replace(torch_dtype="float16")
    require_servable(config, recipe.layout, recipe.group_size, f"quantize.{key}", recipe.tensor_parallel)
    with new_artifact(
        out, kind="quantized", recipe=recipe.model_dump(by_alias=True, mode="json"), parents={"from": origin},
        data={"calibration": windows.digest}, seed=None, origin=origin.origin, model_format="awq",
    ) as folder:  # fmt: skip
        writer = ModelWriter(folder, config, recipe.layout)
        tokens = torch.from_numpy(windows.tokens)
        errors = quantize_model(checkpoint, tokens, recipe, writer, device=device(), progress=show)
        write_tokenizer(source, folder)
    write_trace(trace, [asdict(error) for error in errors], plots.linear_errors)


if __name__ == "__main__":
    run(main)
