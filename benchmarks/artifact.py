"""Which artifact a row of a result was measured on, so that it can be held against the reports."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from registry.manifest import MANIFEST, read


def digest(folder: Path) -> str | None:
    """The digest of the artifact in a folder; None of a model that nobody has sealed."""
    return read(folder).digest if (folder / MANIFEST).is_file() else None


def of_other_bytes(rows: Iterable[Mapping[str, Any]], reports: Path) -> list[str]:
    """Models with a report whose rows were measured on another artifact than that, or do not say on which."""
    found = {(row["model"], row.get("artifact")) for row in rows}
    files = {model: reports / f"{model}.json" for model, _ in found}
    said = {model: json.loads(file.read_text("utf8"))["artifact"] for model, file in files.items() if file.is_file()}
    return sorted(model for model, artifact in found if model in said and said[model] != artifact)
