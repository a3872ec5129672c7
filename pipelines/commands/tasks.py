"""`tasks`: what a variant answers in multiple choice and the like, by lm-eval and from local files."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.commands.child import found_by
from pipelines.commands.output import AsJson, console, print_json
from pipelines.params import ParamsError
from pipelines.stage import repository_root


def tasks(
    variants: Annotated[list[str], typer.Argument(help="variants of params.yaml")],
    folder: Annotated[Path, typer.Option("--tasks", help="a folder of lm-eval's task files (YAML)")],
    task: Annotated[list[str], typer.Option(help="a task of that folder; may be given again")],
    limit: Annotated[int, typer.Option(min=0, help="documents of each task; 0 takes all")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure variants on tasks through lm-eval, which comes with the extra `tasks`."""
    root = repository_root()
    if not folder.is_dir():
        raise ParamsError(f"--tasks {folder}: no such folder; give one with lm-eval's YAML files")
    found = {variant: _measured(root / "models" / variant, folder, task, limit) for variant in variants}
    if as_json:
        print_json(found)
        return
    table = Table("variant", "task", "metric", "value")
    for variant, results in found.items():
        for name, metrics in results.items():
            for metric, value in metrics.items():
                table.add_row(variant, name, metric, f"{value:.4g}")
    console().print(table)


def _measured(model: Path, folder: Path, names: list[str], limit: int) -> dict[str, dict[str, float]]:
    if not (model / "config.json").is_file():
        raise ParamsError(f"{model.name}: no model in {model}; run `dvc repro` or name another variant")
    said: dict[str, Any] = found_by("pipelines.tasks", model, folder, *names, limit, refusal=model.name)
    return said
