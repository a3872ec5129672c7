"""What was measured of a variant, read back: its report, and the sums of its documents that comparisons draw from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.params import ParamsError
from pipelines.speed import gate_speed
from registry.report import read_report


@dataclass(frozen=True)
class Measured:
    """A variant's report, and the sums of each document that comparisons draw from."""

    name: str
    report: Mapping[str, Any]
    documents: Mapping[str, Any] | None  # None where a registry holds a report of before there were any
    artifact: str | None = None  # digest of what was measured; None in a report that does not say
    proof: Mapping[str, Any] | None = None  # what the engine found, as its file says it; None where nobody asked it

    @property
    def sums(self) -> dict[str, np.ndarray]:
        columns = self.documents["columns"] if self.documents else {}
        return {name: np.array(column) for name, column in columns.items()}

    def is_on_same_text(self, other: "Measured") -> bool:
        """Whether both were measured on the same tokens, so that they can be compared document by document."""
        if self.documents is None or other.documents is None:
            return False
        return all(self.documents[name] == other.documents[name] for name in ("evaluation", "units"))


def read_local(root: Path, variant: str) -> Measured:
    """A variant as `dvc repro` measured it here."""
    path = root / "reports" / f"{variant}.json"
    if not path.is_file():
        raise ParamsError(f"{variant}: no report at {path}; run `dvc repro` or name an evaluated variant")
    report = with_speed(read_report(path), root, variant)
    documents = read_documents(root / "evaluations" / variant / "documents.json")
    return Measured(variant, report, documents, report.get("artifact"))


def with_speed(report: dict[str, Any], root: Path, variant: str) -> dict[str, Any]:
    """The report, with what `turbopress speed` found on this machine."""
    speed = gate_speed(root, variant)
    return report | {"speed": speed} if speed else report


def read_documents(path: Path) -> dict[str, Any] | None:
    """What `documents_json` gave, from its file; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise ParamsError(f"{path}: is not JSON ({error}); evaluate again") from None
    if not isinstance(content, dict) or not {"evaluation", "units", "columns"} <= content.keys():
        raise ParamsError(f"{path}: holds no sums of documents; evaluate again")
    return content
