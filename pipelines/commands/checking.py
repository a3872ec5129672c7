"""What `verify` does beyond reading the bytes."""

import sys
from pathlib import Path

from pipelines.stage import repository_root


def rederive_layers(folder: Path, count: int, parent: Path | None, calibration: Path | None) -> None:
    """Quantizes random layers of the artifact again; what is needed for it is looked for in this repository."""
    from pipelines.rederive import rederive  # noqa: PLC0415 - torch is slow to import

    places = [parent] if parent else sorted((repository_root() / "models").iterdir())
    windows = calibration or repository_root() / "data" / "calibration"
    layers = ", ".join(map(str, rederive(folder, count, places, windows)))
    print(f"{folder}: made again, layers {layers} are byte for byte the same", file=sys.stderr)
