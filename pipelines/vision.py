"""`turbopress vision`: a vision-language model's language model, out to be compressed and back in."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.folders import model_folder
from pipelines.stage import new_artifact, parent
from registry.manifest import fresh_folder

app = typer.Typer(help="Compress the language model of an InternVL or LLaVA folder; what sees stays as it is.")


@app.command()
def take(
    folder: Annotated[Path, typer.Argument(help="an InternVL or Hugging Face-format LLaVA folder")],
    to: Annotated[Path, typer.Option("--to", help="the new folder; name it as base.source in params.yaml")],
) -> None:
    """Write the language model alone, an ordinary model that every stage takes."""
    from compress.checkpoint.vision import take as take_out  # noqa: PLC0415 - torch is slow to import

    with fresh_folder(to) as fresh:
        take_out(folder, fresh)
    print(f"{to}: the language model of {folder}; in params.yaml: base: {{source: {to}, revision: null}}")


@app.command()
def give(
    variant: Annotated[str, typer.Argument(help="the compressed language model: a variant, a folder or NAME@ALIAS")],
    vision: Annotated[Path, typer.Option(help="the folder that its base was taken from")],
    to: Annotated[Path, typer.Option("--to", help="the new folder, ready to be served")],
) -> None:
    """Write the vision-language model with this language model in it."""
    from compress.checkpoint.vision import give as give_back  # noqa: PLC0415 - torch is slow to import

    folder = model_folder(variant)
    source = parent(folder)
    with new_artifact(
        to, kind=source.kind, recipe={**source.recipe, "vision": "as it was"}, parents={"language": source},
        data=source.data, seed=source.seed, origin=source.origin,
    ) as fresh:  # fmt: skip
        give_back(vision, folder, fresh)
    print(f"{to}: {vision} with the language model of {variant}")
