"""Stage `compare`: all reports in one table and one picture."""

import json
from pathlib import Path

from pipelines.params import load
from pipelines.stage import fresh_file, repository_root, run
from pipelines.summary import markdown, picture, read_rows


def main(reports: Path) -> None:
    """Writes summary.json, summary.md and summary.png beside the variants' REPORTS."""
    rows = read_rows(load(repository_root()), reports)
    with (
        fresh_file(reports / "summary.json") as values,
        fresh_file(reports / "summary.md") as page,
        fresh_file(reports / "summary.png") as drawing,
    ):
        values.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "utf8")
        page.write_text(markdown(rows), "utf8")
        picture(rows, drawing)


if __name__ == "__main__":
    run(main)
