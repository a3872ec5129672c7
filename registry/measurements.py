"""What was measured of a version, read back from the run that measured it, on whatever machine that was."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from registry.errors import RegistryError
from registry.store import Store
from registry.versions import Version

REPORT = "report.json"
DOCUMENTS = "documents.json"


@dataclass(frozen=True)
class Measurement:
    """The report of a version, and the sums of its documents where they were logged."""

    report: dict[str, Any]
    documents: dict[str, Any] | None


def read_measurement(store: Store, version: Version) -> Measurement:
    """The report that the version shows."""
    run_id = version.tags.get("measured_by")
    if run_id is None:
        raise RegistryError(f"{version.model}/{version.number}: was never measured; run: dvc repro")
    present = {entry.path for entry in store.client.list_artifacts(run_id)}
    if REPORT not in present:
        raise RegistryError(f"{version.model}/{version.number}: its run {run_id} holds no {REPORT}; publish again")
    documents = _read(store, run_id, DOCUMENTS) if DOCUMENTS in present else None
    return Measurement(_read(store, run_id, REPORT), documents)


def _read(store: Store, run_id: str, name: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        path = Path(store.client.download_artifacts(run_id, name, folder))
        try:
            content = json.loads(path.read_text("utf8"))
        except ValueError as error:
            raise RegistryError(f"run {run_id}: {name} is not JSON ({error}); publish again") from None
    if not isinstance(content, dict):
        raise RegistryError(f"run {run_id}: {name} holds no object; publish again")
    return content
