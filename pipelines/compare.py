"""Stage `compare`: all reports in one table, one picture and one page."""

import json
from itertools import permutations
from pathlib import Path

from pipelines.measured import Measured, read_documents
from pipelines.page import page
from pipelines.pairs import Difference, differences
from pipelines.params import load
from pipelines.stage import fresh_file, repository_root, run
from pipelines.summary import markdown, picture, read_rows, stored
from registry.report import read_report


def main(reports: Path, evaluations: Path) -> None:
    """Writes summary.json, .md, .png and .html beside the variants' REPORTS."""
    rows = read_rows(load(repository_root()), reports)
    found = {row["variant"]: read_report(reports / f"{row['variant']}.json") for row in stored(rows)}
    measured = [Measured(k, v, read_documents(evaluations / k / "documents.json")) for k, v in found.items()]
    with (
        fresh_file(reports / "summary.json") as values,
        fresh_file(reports / "summary.md") as text,
        fresh_file(reports / "summary.png") as drawing,
        fresh_file(reports / "summary.html") as opened,
    ):
        values.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "utf8")
        text.write_text(markdown(rows), "utf8")
        picture(rows, drawing)
        opened.write_text(page(rows, found, _pairs(measured), drawing.read_bytes()), "utf8")


def _pairs(measured: list[Measured]) -> dict[tuple[str, str], dict[str, Difference] | None]:
    """How the second differs from the first, for any two; None where they were measured on different text."""
    return {(a.name, b.name): differences(a, b) if a.is_on_same_text(b) else None for a, b in permutations(measured, 2)}


if __name__ == "__main__":
    run(main)
