"""What was measured of a version, read back from the run that measured it, on whatever machine that was."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from registry.conformance import Conformance, merged, parsed
from registry.errors import RegistryError
from registry.store import Store
from registry.versions import Version

REPORT = "report.json"
DOCUMENTS = "documents.json"
PROOF = "conformance.json"  # of the run that made the version: a proof is of the artifact, and outlives a report


@dataclass(frozen=True)
class Measurement:
    """The report of a version; the sums of its documents and what the engine found, where they were logged."""

    report: dict[str, Any]
    documents: dict[str, Any] | None
    proof: dict[str, Any] | None = None


def read_measurement(store: Store, version: Version) -> Measurement:
    """The report that the version shows."""
    run_id = version.tags.get("measured_by")
    if run_id is None:
        raise RegistryError(f"{version.model}/{version.number}: was never measured; run: dvc repro")
    present = _files(store, run_id)
    if REPORT not in present:
        raise RegistryError(f"{version.model}/{version.number}: its run {run_id} holds no {REPORT}; publish again")
    documents = _read(store, run_id, DOCUMENTS) if DOCUMENTS in present else None
    return Measurement(_read(store, run_id, REPORT), documents, read_proof(store, version))


def read_proof(store: Store, version: Version) -> dict[str, Any] | None:
    """What the engine found of the version's artifact; None where nobody has registered it."""
    return _read(store, version.run_id, PROOF) if PROOF in _files(store, version.run_id) else None


def log_proof(store: Store, version: Version, proof: Conformance) -> None:
    """The run that made the version holds the proof, beside what it held of other ways; a deleted run takes nothing."""
    known = read_proof(store, version)
    whole = merged(parsed(known), proof).model_dump(mode="json")
    if known != whole and store.client.get_run(version.run_id).info.lifecycle_stage == "active":
        store.client.log_dict(version.run_id, whole, PROOF)


def _files(store: Store, run_id: str) -> set[str]:
    return {entry.path for entry in store.client.list_artifacts(run_id)}


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
