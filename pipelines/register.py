"""Stages `register-…`: a measured model becomes a version in MLflow; done twice it is done once."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.check import changed_sources
from pipelines.measured import with_speed
from pipelines.params import ParamsError, load
from pipelines.stage import fresh_file, repository_root, run
from registry.conformance import path_beside, read_proof
from registry.publish import Published, publish
from registry.report import read_report

Documents = Annotated[Path | None, typer.Option(help="what stage `evaluate` found of each document")]
Comparison = Annotated[list[Path] | None, typer.Option(help="what stage `compare` made of all variants")]
Out = Annotated[Path | None, typer.Option(help="where to say which version it is")]
Sources = Annotated[Path | None, typer.Option(help="what stage `check` wrote; refuse if a source has changed since")]


def main(
    key: str,
    folder: Path,
    report: Path,
    plots: list[Path],
    sources: Sources = None,
    documents: Documents = None,
    comparison: Comparison = None,
    out: Out = None,
) -> None:
    """Publishes FOLDER with its REPORT, the engine's proof beside it and PLOTS under the alias KEY."""
    root = repository_root()
    params = load(root)
    if sources and (changed := changed_sources(root, params, sources)):
        raise ParamsError("\n".join(changed))
    proof = read_proof(path_beside(report))
    published = publish(
        folder, with_speed(read_report(report), root, key), root=root, model=params.registry.model, variant=key,
        plots=plots, attachments=[documents] if documents else [], comparison=comparison or [],
        proof=proof,
    )  # fmt: skip
    print(published)
    if proof and proof.artifact != published.version.digest:
        print(f"{path_beside(report)}: is the proof of other bytes, left out; run turbopress conformance {key} again")
    if out:
        write_entry(out, published)


def write_entry(out: Path, published: Published) -> None:
    """Which version the artifact is: what stage `register` waits for."""
    version = published.version
    entry = {"model": version.model, "version": version.number, "variant": version.variant, "digest": version.digest}
    with fresh_file(out) as file:
        file.write_text(json.dumps(entry, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    run(main)
