"""`quantize`: a model folder to a 4-bit artifact, without params.yaml and DVC."""

from pathlib import Path
from typing import Annotated

import typer

from compress.quantize.recipe import NAMED


def quantize(
    model: Annotated[str, typer.Argument(help="a model folder; or org/name on Hugging Face, with --revision")],
    calibration: Annotated[str, typer.Option(help="text: .jsonl (also of chat messages), .txt, .parquet")],
    to: Annotated[Path, typer.Option("--to", help="the new folder")],
    recipe: Annotated[
        str, typer.Option(help=f"{' or '.join(NAMED)}, which loses less on text like TEXT in more time")
    ] = "awq-light",
    weights: Annotated[str, typer.Option("--format", help="awq, or compressed-tensors")] = "awq",
    group_size: Annotated[int, typer.Option(help="weights that share a scale: 128; compressed-tensors also 32")] = 128,
    windows: Annotated[int, typer.Option(min=1, help="of calibration text")] = 128,
    length: Annotated[int, typer.Option(min=16, help="tokens of a window")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="windows on the device at a time")] = 8,
    tp: Annotated[int, typer.Option(min=1, help="GPUs that will serve it")] = 1,
    revision: Annotated[str | None, typer.Option(help="of a hub id: its commit, 40 hex digits")] = None,
) -> None:
    """Quantize a model to 4 bits that LMDeploy serves. Killed and run again, it goes on where it was."""
    from pipelines.quantize_folder import recipe_named, run  # noqa: PLC0415 - torch is slow to import

    said = recipe_named(recipe, model, format=weights, group_size=group_size, batch=batch, tensor_parallel=tp)
    run(model, revision, calibration, windows, length, said, to)
