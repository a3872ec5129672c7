"""`speed`: tokens a second and peak memory on this machine; what was timed elsewhere is never in the same column."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.commands.child import found_by
from pipelines.commands.output import AsJson, console, print_json
from pipelines.params import ParamsError, load
from pipelines.speed import ENGINES, SpeedTable, speed_file, tables, timed_here
from pipelines.stage import fresh_file, repository_root

BATCHES = "1,8,64"
PROGRAMS = {"transformers": "pipelines.timing", "lmdeploy": "pipelines.timing_lmdeploy"}


def speed(
    variants: Annotated[
        list[str] | None, typer.Argument(help="to be timed; without any, what was timed is shown")
    ] = None,
    batches: Annotated[str, typer.Option(help="rows written at once, with commas between")] = BATCHES,
    engine: Annotated[str, typer.Option(help="transformers, or lmdeploy where it and a GPU are")] = "transformers",
    as_json: AsJson = False,
) -> None:
    """Time variants on this machine; the gate and the registry read what is found."""
    root = repository_root()
    if engine not in ENGINES:
        raise ParamsError(f"--engine {engine}: choose {' or '.join(ENGINES)}")
    known = load(root).variants
    for variant in variants or []:
        folder = root / "models" / variant
        if variant not in known or not (folder / "config.json").is_file():
            raise ParamsError(f"{variant}: no model in {folder}; run `dvc repro` or name one of {', '.join(known)}")
        measured = _timed(PROGRAMS[engine], folder, _numbers(batches))
        with fresh_file(speed_file(root, variant, engine)) as file:
            file.write_text(json.dumps(measured, indent=2) + "\n", "utf8")
    timed = timed_here(root, known)
    if as_json:
        print_json([{"variant": variant, **found} for variant, found in timed])
        return
    for table in tables(timed):
        console().print(_printed(table))


def _timed(program: str, folder: Path, batches: list[int]) -> dict[str, Any]:
    """Each model in a process of its own, or the peak would be the largest one's."""
    found: dict[str, Any] = found_by(program, folder, *batches, refusal=f"{folder}: was not timed")
    return found


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ParamsError(f"--batches {text}: write whole numbers with commas between, as in {BATCHES}")
    return numbers


def _printed(found: SpeedTable) -> Table:
    table = Table(title=found.title, title_justify="left")
    for column in found.head:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in found.rows:
        table.add_row(*row)
    return table
