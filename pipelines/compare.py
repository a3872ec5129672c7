"""Stage `compare`: all reports in one table, one picture and one page."""

import json
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.measured import Measured, read_documents
from pipelines.page import Pairs, page
from pipelines.pairs import Difference, differences
from pipelines.params import load
from pipelines.speed import tables, timed_here
from pipelines.stage import fresh_file, repository_root, run
from pipelines.summary import Row, markdown, picture, read_rows, stored
from registry.report import read_report


def main(reports: Path, evaluations: Path) -> None:
    """Writes summary.json, .md, .png and .html beside the variants' REPORTS."""
    rows = read_rows(load(repository_root()), reports)
    found, pairs = _found(rows, reports, evaluations)
    with (
        fresh_file(reports / "summary.json") as values,
        fresh_file(reports / "summary.md") as text,
        fresh_file(reports / "summary.png") as drawing,
        fresh_file(reports / "summary.html") as opened,
    ):
        values.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "utf8")
        text.write_text(markdown(rows), "utf8")
        picture(rows, drawing)
        opened.write_text(page(rows, found, pairs, drawing.read_bytes()), "utf8")


def write_local_page(root: Path, out: Path) -> None:
    """The page with what was timed on this machine; the stage's own has none, because it is of no machine."""
    params, reports = load(root), root / "reports"
    rows = read_rows(params, reports)
    found, pairs = _found(rows, reports, root / "evaluations")
    with TemporaryDirectory() as work, fresh_file(out) as file:
        drawing = Path(work) / "summary.png"
        picture(rows, drawing)
        speeds = tables(timed_here(root, params.variants))
        file.write_text(page(rows, found, pairs, drawing.read_bytes(), speeds), "utf8")


def _found(rows: list[Row], reports: Path, evaluations: Path) -> tuple[dict[str, dict[str, Any]], Pairs]:
    """The variants' reports, and how any two of them differ."""
    found = {row["variant"]: read_report(reports / f"{row['variant']}.json") for row in stored(rows)}
    measured = [Measured(k, v, read_documents(evaluations / k / "documents.json")) for k, v in found.items()]
    return found, _pairs(measured)


def _pairs(measured: list[Measured]) -> dict[tuple[str, str], dict[str, Difference] | None]:
    """How the second differs from the first, for any two; None where they were measured on different text."""
    return {(a.name, b.name): differences(a, b) if a.is_on_same_text(b) else None for a, b in permutations(measured, 2)}


if __name__ == "__main__":
    run(main)
