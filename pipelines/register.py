"""Stage `register`: a measured model becomes a version in MLflow; done twice it is done once."""

import json
from pathlib import Path

from pipelines.params import load
from pipelines.stage import repository_root, run
from registry.publish import publish


def main(key: str, folder: Path, report: Path, plots: list[Path]) -> None:
    """Publishes FOLDER with its REPORT and PLOTS under the alias KEY."""
    root = repository_root()
    model = load(root).registry.model
    print(publish(folder, json.loads(report.read_text("utf8")), root=root, model=model, variant=key, plots=plots))


if __name__ == "__main__":
    run(main)
