"""The command `turbopress`: looking at what the pipeline made. `dvc repro` makes it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipelines import vision
from pipelines.chat import chat
from pipelines.check import in_order
from pipelines.commands import ancestry, checking, pairing, promotion, pulling, quantizing, shipping, speeds, tasks
from pipelines.conformance import conformance
from pipelines.folders import model_folder
from pipelines.gguf import gguf
from pipelines.memory import memory
from pipelines.params import ParamsError, load
from pipelines.serve import serve
from pipelines.stage import new_artifact, one_line_errors, parent, repository_root
from pipelines.web import web
from registry.manifest import verify as verify_folder

app = typer.Typer(
    help="Compress InternLM2-family models and ship them to LMDeploy. `dvc repro` makes the variants that params.yaml "
    "names; these commands look at them.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (
    quantizing.quantize,
    promotion.gate, promotion.promote, ancestry.history, ancestry.lineage,
    shipping.export, shipping.rollback, shipping.releases, shipping.gc, shipping.push, pulling.pull, speeds.speed,
    checking.sign, tasks.tasks,
):  # fmt: skip
    app.command()(verb)
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value for programs")]


def main() -> None:
    """What the installed command runs."""
    with one_line_errors():
        app()


@app.command()
def check() -> None:
    """Read params.yaml and name everything that is wrong with it."""
    params = in_order(repository_root())
    print(f"params.yaml is in order: {', '.join(params.variants)}")


@app.command()
def compare(
    pair: Annotated[list[str] | None, typer.Argument(help="two variants, to be compared on the same text")] = None,
    as_json: AsJson = False,
    md: Annotated[bool, typer.Option("--md", help="print a Markdown table")] = False,
    page: Annotated[
        Path | None, typer.Option("--html", help="write the page, with what was timed on this machine")
    ] = None,
) -> None:
    """Print the table of all variants, or how two of them differ: size, perplexity, divergence from the base."""
    from pipelines.overlap import warnings  # noqa: PLC0415 - the other commands need no table
    from pipelines.summary import markdown, read_rows, table  # noqa: PLC0415

    root = repository_root()
    if pair:
        pairing.print_pair(root, pair, as_json=as_json)
        return
    if page:
        from pipelines.compare import write_local_page  # noqa: PLC0415

        write_local_page(root, page)
        print(f"{page}: opens in any browser, offline")
        return
    params = load(root)
    rows = read_rows(params, root / "reports")
    for line in warnings(root / "reports", params.generate):
        print(f"turbopress: {line}", file=sys.stderr)
    if as_json:
        _print_json(rows)
    elif md:
        print(markdown(rows), end="")
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(table(rows))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="an artifact")],
    rederive: Annotated[int, typer.Option(min=0, help="quantize so many random layers again and compare")] = 0,
    parent_folder: Annotated[Path | None, typer.Option("--parent", help="what it was quantized from")] = None,
    calibration: Annotated[Path | None, typer.Option(help="the windows it was quantized on")] = None,
    public_key: Annotated[Path | None, typer.Option(help="check the signature too, by this key in PEM")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of an artifact again and compare it with its manifest."""
    manifest = verify_folder(folder)
    if public_key:
        checking.check_signature(folder, public_key)
    if rederive:
        checking.rederive_layers(folder, rederive, parent_folder, calibration)
    if as_json:
        _print_json({"folder": str(folder), "digest": manifest.digest, "files": len(manifest.files)})
    else:
        print(f"{folder}: {len(manifest.files)} files, {manifest.size_bytes:,} bytes, unaltered, {manifest.digest}")


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="an artifact, float or quantized")],
    to: Annotated[Path, typer.Option("--to", help="the new folder")],
    layout: Annotated[str, typer.Option(help="llama (stock names) or internlm2 (fused wqkv)")] = "internlm2",
) -> None:
    """Write the same model in the other layout; no number changes."""
    from compress.checkpoint.convert import write_in_layout  # noqa: PLC0415 - torch is slow to import

    if layout not in ("llama", "internlm2"):
        raise ParamsError(f"--layout: {layout}; choose llama or internlm2")
    source = parent(folder)
    with new_artifact(
        to, kind=source.kind, recipe={**source.recipe, "layout": layout}, parents={"from": source}, data=source.data,
        seed=source.seed, origin=source.origin,
    ) as fresh:  # fmt: skip
        write_in_layout(folder, layout, fresh)  # type: ignore[arg-type]  # one of the two, as checked above
    print(f"{to}: {folder} in layout {layout}")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="a quantized variant of params.yaml, or a folder")],
    parent_model: Annotated[
        str | None, typer.Option("--parent", help="what it was quantized from; params.yaml says it of a variant")
    ] = None,
    on: Annotated[
        str, typer.Option(help="the text to measure on: evaluation, calibration or distillation")
    ] = "evaluation",
    windows: Annotated[int, typer.Option(min=1, help="how many windows of it, taken from all over")] = 16,
    layers: Annotated[
        str,
        typer.Option(
            help="measured alone as well: worst:N, all, or 3,7; each costs one more run of the layers behind it"
        ),
    ] = "worst:8",
    as_json: AsJson = False,
) -> None:
    """Say which layers of a quantized model lose how much, why, and what to try."""
    from pipelines.explain import run  # noqa: PLC0415 - torch is slow to import

    folder, base = model_folder(model), None if parent_model is None else model_folder(parent_model)
    run(folder, base, on, windows, layers, as_json=as_json)


for command in (chat, conformance, gguf, memory, serve, web):
    app.command()(command)
app.add_typer(vision.app, name="vision")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
