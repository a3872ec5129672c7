"""Stage `compare`: all reports in one table and one picture."""

from pathlib import Path

from compress.checkpoint.write import write_json
from pipelines.params import load
from pipelines.stage import repository_root, run
from pipelines.summary import markdown, picture, read_rows


def main(reports: Path) -> None:
    """Writes summary.json, summary.md and summary.png beside the variants' REPORTS."""
    rows = read_rows(load(repository_root()), reports)
    write_json(reports / "summary.json", rows)
    (reports / "summary.md").write_text(markdown(rows), "utf8")
    picture(rows, reports / "summary.png")


if __name__ == "__main__":
    run(main)
