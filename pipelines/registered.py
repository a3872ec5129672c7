"""Stage `register`: the name behind which all variants are registered; says which versions they are."""

import json
from pathlib import Path

from pipelines.stage import run


def main(folder: Path) -> None:
    """Prints what the stages before this one wrote into FOLDER."""
    for file in sorted(folder.glob("*.json")):
        entry = json.loads(file.read_text("utf8"))
        print(f"{entry['model']} v{entry['version']} ({entry['variant']})")


if __name__ == "__main__":
    run(main)
