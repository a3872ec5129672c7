"""Entering an artifact into MLflow: one run, one logged model, one version; done twice, it is done once.

The order makes failures harmless. The artifact is verified before MLflow hears of it; the run is open before the
work; the version comes last, when the logged model is READY and complete. What breaks in between leaves a run and a
model marked FAILED and no version, and the next publish starts anew. A version whose files were deleted gets them
back; a lost database fills again.

Inside a DVC experiment nothing that production reads changes: a new artifact becomes a version tagged as candidate,
and no alias moves.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from registry.conformance import Conformance
from registry.errors import RegistryError
from registry.lineage import tell_ancestry
from registry.manifest import verify
from registry.measurements import log_proof
from registry.races import settled
from registry.record import Entry, attach_comparison, link_parents, log, run
from registry.report import parse_report
from registry.store import Store, as_default, experiment_id, explained, prepare, unless_it_exists
from registry.versions import CANDIDATE, Version, describe, find, point, withdraw
from registry.weights import Placed, discard, missing, place

MODEL_TYPE = "turbomind"
RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)  # MLflow keeps these aliases for itself

Outcome = Literal["registered", "measured again", "unchanged"]


@dataclass(frozen=True)
class Published:
    """Where the artifact now stands; `placed` says how its files got there, None when they were there already."""

    version: Version
    outcome: Outcome
    placed: Placed | None
    alias: str | None  # None inside a DVC experiment

    @property
    def uri(self) -> str:
        return f"models:/{self.version.model}/{self.version.number}"

    def __str__(self) -> str:
        files = f", files {self.placed}" if self.placed else ""
        alias = f", alias {self.alias}" if self.alias else ", in an experiment: no alias moved"
        return f"{self.version.model} v{self.version.number} ({self.version.variant}): {self.outcome}{files}{alias}"


def publish(
    folder: Path,
    report: Mapping[str, Any],
    *,
    root: Path,
    model: str,
    variant: str,
    plots: Sequence[Path] = (),
    params: Mapping[str, JsonValue] | None = None,
    attachments: Sequence[Path] = (),
    comparison: Sequence[Path] = (),
    proof: Conformance | None = None,
) -> Published:
    """The artifact is a version of `model` afterwards, with this report; the alias `variant` points at it.

    `comparison` is of all variants, so it changes with any of them: the run shows the newest. A `proof` may come long
    after the report, from a machine with a GPU; one of other bytes is left out.
    """
    _check_names(model, variant)
    manifest = verify(folder)
    measured = parse_report(report, variant=variant, digest=manifest.digest)
    for file in (*plots, *attachments, *comparison):
        if not file.is_file():
            raise RegistryError(f"{file}: no such file; make it first or leave it out")
    entry = Entry(folder, manifest, measured, model, variant, tuple(plots), params or {}, root, tuple(attachments))
    store = prepare(root)
    with explained(f"{store.uri}: {variant}"), store.alone():
        known = find(store.client, model, manifest.digest, variant)
        published = _register(store, entry) if known is None else _refresh(store, entry, known)
        if published.alias:
            point(store.client, published.version)
        tell_ancestry(store.client, published.version)
        attach_comparison(store.client, published.version.tags["measured_by"], comparison)
        if proof and proof.artifact == manifest.digest and _may_change(published.version):
            log_proof(store, published.version, proof)
        return published


def _register(store: Store, entry: Entry) -> Published:
    client = store.client
    experiment = experiment_id(store, entry.model)
    with unless_it_exists():
        client.create_registered_model(entry.model)
    with run(client, experiment, entry) as run_id, _logged_model(store, experiment, run_id, entry) as model:
        placed = place(client, model, entry.folder, entry.manifest)
        log(client, run_id, model.model_id, entry)
        link_parents(client, run_id, entry)
        client.finalize_logged_model(model.model_id, "READY")
        version = _create_version(store, entry, run_id, model.model_id)
    first = find(client, entry.model, entry.manifest.digest, entry.variant)
    if first is not None and first.number < version.number:  # another machine did the same at the same time
        withdraw(client, version)
        return Published(first, "unchanged", None, _alias(entry))
    return Published(version, "registered", placed, _alias(entry))


def _create_version(store: Store, entry: Entry, run_id: str, model_id: str) -> Version:
    tags = _version_tags(entry, run_id) | ({CANDIDATE: "true"} if _in_experiment() else {})
    source = f"models:/{model_id}"
    with as_default(store.uri):
        made = settled(
            lambda: store.client.create_model_version(
                entry.model, source, run_id, tags, description=entry.description, model_id=model_id
            )
        )
    return Version(entry.model, int(made.version), tags, run_id, model_id)


def _refresh(store: Store, entry: Entry, known: Version) -> Published:
    client = store.client
    experiment = experiment_id(store, entry.model)
    model = client.get_logged_model(known.model_id)
    lost = missing(client, model, entry.manifest)
    placed = place(client, model, entry.folder, entry.manifest) if lost else None
    run_id, is_new = _measured(store, experiment, entry, known)
    shows_it = known.tags.get("measured_by") == run_id
    if not shows_it and _may_change(known):
        known = describe(client, known, _version_tags(entry, run_id), entry.description)
    link_parents(client, known.run_id, entry)
    return Published(known, "measured again" if is_new else "unchanged", placed, _alias(entry))


def _measured(store: Store, experiment: str, entry: Entry, known: Version) -> tuple[str, bool]:
    """The run that holds this report of this artifact, and whether it had to be made."""
    from mlflow.entities import LoggedModelInput  # noqa: PLC0415 (loaded by now)

    if known.tags.get("report") == entry.report.sha256:
        return known.tags["measured_by"], False
    wanted = {"digest": entry.manifest.digest, "variant": entry.variant, "report": entry.report.sha256}
    query = " and ".join(f"tags.{tag} = '{value}'" for tag, value in wanted.items())
    earlier = store.client.search_runs([experiment], f"{query} and attributes.status = 'FINISHED'", max_results=1)
    if earlier:
        return earlier[0].info.run_id, False
    with run(store.client, experiment, entry) as run_id:
        store.client.log_inputs(run_id, models=[LoggedModelInput(known.model_id)])
        log(store.client, run_id, known.model_id, entry)
    return run_id, True


@contextmanager
def _logged_model(store: Store, experiment: str, run_id: str, entry: Entry) -> Iterator[Any]:
    """A new logged model, output of the run; FAILED when anything breaks before the version exists."""
    from mlflow.entities import LoggedModelOutput  # noqa: PLC0415 (loaded by now)

    client = store.client
    model = client.create_logged_model(experiment, entry.variant, run_id, entry.tags, entry.settings, MODEL_TYPE)
    try:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        yield model
    except BaseException:
        discard(model)  # first: on a full disk this makes the room to say that it failed
        client.finalize_logged_model(model.model_id, "FAILED")
        raise


def _version_tags(entry: Entry, run_id: str) -> dict[str, str]:
    return entry.tags | entry.report.tags | {"measured_by": run_id}


def _may_change(version: Version) -> bool:
    """Whether what the version shows may change: not by an experiment, unless one made it."""
    return version.is_candidate or not _in_experiment()


def _in_experiment() -> bool:
    return "DVC_EXP_NAME" in os.environ


def _alias(entry: Entry) -> str | None:
    return None if _in_experiment() else entry.variant


def _check_names(model: str, variant: str) -> None:
    """MLflow would refuse these too, but only after the work."""
    if not re.fullmatch(r"[\w.-]+", model):
        raise RegistryError(f"registry.model: {model!r} is no model name; use letters, digits, '_', '-' and '.'")
    if not re.fullmatch(r"[\w-]+", variant) or RESERVED.fullmatch(variant):
        remedy = "rename it with letters, digits, '_' and '-', and not 'latest' or 'v1'"
        raise RegistryError(f"variant {variant!r}: can be no alias in MLflow; {remedy}")
