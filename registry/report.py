"""What the evaluation measured, as the registry takes it: finite numbers under the same names for every variant.

The names become MLflow metrics, tags of the version (MLflow's own tables do not show a version's metrics) and rows
of its description. NaN and infinity are refused here: MLflow would store infinity as 1.8e308 and compare it with
the others.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, JsonValue, ValidationError

from registry.errors import RegistryError
from registry.hashing import sha256_json

METRIC_TAG = "metrics."


class Report(BaseModel):
    """Fields unknown to the registry are kept: they count in the report's digest and in the logged report.json."""

    model_config = ConfigDict(frozen=True, extra="allow")

    variant: str
    metrics: dict[str, int | FiniteFloat]
    protocol: dict[str, JsonValue] = {}  # how it was measured
    data: dict[str, str] = {}  # name → sha256 of the token ids measured on
    artifact: str | None = None  # digest of what was measured

    @property
    def sha256(self) -> str:
        return sha256_json(self.model_dump(mode="json"))

    @property
    def tags(self) -> dict[str, str]:
        return {"report": self.sha256} | {METRIC_TAG + name: str(value) for name, value in self.metrics.items()}

    @property
    def table(self) -> str:
        """The metrics in markdown, in the report's own order."""
        rows = [f"| {name} | {_readable(value)} |" for name, value in self.metrics.items()]
        return "\n".join(["| metric | value |", "| --- | ---: |", *rows])


def read_report(path: Path) -> dict[str, Any]:
    """What a report's file holds, which is at least an object with metrics."""
    try:
        content = json.loads(path.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: no report ({error}); evaluate again") from None
    if not isinstance(content, dict) or not {"kind", "metrics"} <= content.keys():
        raise RegistryError(f"{path}: no report (kind or metrics missing); evaluate again")
    return content


def parse_report(content: Mapping[str, Any], *, variant: str, digest: str) -> Report:
    """The report, when it is one and measured this variant and this artifact."""
    place = f"report of {variant}"
    try:
        report = Report.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        spot = ".".join(str(part) for part in first["loc"])
        raise RegistryError(f"{place}: {spot}: {first['msg']} (found {first['input']!r}); evaluate again") from error
    if report.variant != variant:
        raise RegistryError(f"{place}: measured variant {report.variant!r}; give the report of {variant!r}")
    if report.artifact not in (None, digest):
        raise RegistryError(f"{place}: measured artifact {report.artifact}, not {digest}; evaluate again")
    return report


def _readable(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
