"""The command `turbopress`: looking at what the pipeline made. `dvc repro` makes it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipelines.check import in_order
from pipelines.commands import ancestry, checking, pairing, promotion, shipping, speeds, tasks
from pipelines.params import ParamsError, load
from pipelines.stage import device, new_artifact, one_line_errors, parent, repository_root
from registry.manifest import MANIFEST
from registry.manifest import verify as verify_folder

app = typer.Typer(
    help="Compress InternLM2-family models and ship them to LMDeploy. `dvc repro` makes the variants that params.yaml "
    "names; these commands look at them.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (
    promotion.gate, promotion.promote, ancestry.history, ancestry.lineage,
    shipping.export, shipping.rollback, shipping.releases, shipping.gc, shipping.push, speeds.speed,
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
) -> None:
    """Print the table of all variants, or how two of them differ: size, perplexity, divergence from the base."""
    from pipelines.summary import markdown, read_rows, table  # noqa: PLC0415 - the other commands need no table

    root = repository_root()
    if pair:
        pairing.print_pair(root, pair, as_json=as_json)
        return
    rows = read_rows(load(root), root / "reports")
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
        seed=source.seed, origin=source.origin, model_format="awq" if source.kind == "quantized" else None,
    ) as fresh:  # fmt: skip
        write_in_layout(folder, layout, fresh)  # type: ignore[arg-type]  # one of the two, as checked above
    print(f"{to}: {folder} in layout {layout}")


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="a variant of params.yaml, a folder, or NAME@ALIAS")],
    prompt: Annotated[str | None, typer.Argument(help="answer this once; without it, a conversation")] = None,
    raw: Annotated[bool, typer.Option(help="continue the text as it stands, without chat markup")] = False,
    system: Annotated[str | None, typer.Option(help="a system prompt")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Talk to a stored model through transformers, on the CPU or a GPU; /reset forgets, Ctrl-D ends."""
    folder = _folder(model)
    if (folder / MANIFEST).exists():  # any other folder may be talked to as well
        verify_folder(folder)
    from compress.evaluate.generation import Sampling, Speaker  # noqa: PLC0415 - torch is slow to import
    from pipelines.conversation import answer_once, converse  # noqa: PLC0415

    speaker, sampling = Speaker.load(folder, device()), Sampling(max_tokens, temperature, top_p, seed)
    if prompt is None:
        converse(speaker, sampling, raw=raw, system=system)
        return
    text = answer_once(speaker, prompt, sampling, raw=raw, system=system, echo=not as_json)
    if as_json:
        _print_json({"model": str(folder), "prompt": prompt, "text": text})


def _folder(model: str) -> Path:
    """The folder that a variant's key, a path or a registered version means."""
    if "@" in model:
        from registry.resolve import resolve  # noqa: PLC0415 - MLflow is slow to import

        return resolve(model, root=repository_root())
    places = [Path(model)]
    if "/" not in model:
        places.append(repository_root() / "models" / model)
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ParamsError(f"{model}: no model in {' or '.join(map(str, places))}; run `dvc repro` or give a folder")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
