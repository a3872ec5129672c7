"""Versions of the registered model: one for each artifact and variant, found by the artifact's digest.

A version *is* its artifact: measured again, it keeps its number, and its tags and description show the newest
report. An alias carries the variant's name and points at the version that a plain `dvc repro` made last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from registry.races import settled
from registry.report import METRIC_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"  # made by a DVC experiment: no alias points at it


@dataclass(frozen=True)
class Version:
    model: str
    number: int
    tags: Mapping[str, str]
    run_id: str  # the run that registered it
    model_id: str  # the logged model that holds its files
    aliases: tuple[str, ...] = ()
    created_ms: int = 0  # since 1970, as the store has it; 0 for one that was made a moment ago

    @property
    def digest(self) -> str:
        return self.tags["digest"]

    @property
    def variant(self) -> str:
        return self.tags["variant"]

    @property
    def is_candidate(self) -> bool:
        return CANDIDATE in self.tags

    @property
    def metrics(self) -> dict[str, float]:
        return {
            tag.removeprefix(METRIC_TAG): float(value) for tag, value in self.tags.items() if tag.startswith(METRIC_TAG)
        }


def find(client: "MlflowClient", model: str, digest: str, variant: str | None = None) -> Version | None:
    """The oldest version of that artifact whose logged model still exists.

    There are two for a moment when two machines register the same at once; the oldest is the one that stays.
    """
    query = f"name='{model}' and tags.digest='{digest}'"
    query += f" and tags.variant='{variant}'" if variant else ""
    return next((v for v in reversed(versions(client, query)) if _model_exists(client, v.model_id)), None)


def versions(client: "MlflowClient", query: str) -> list[Version]:
    """The versions turbopress registered that match, newest first; those that others registered lack the tags."""
    found: list[Version] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(query, order_by=["version_number DESC"], page_token=token or None)
        found += [_version(entry) for entry in page if {"digest", "variant"} <= entry.tags.keys()]
        token = page.token or None
    return found


def point(client: "MlflowClient", version: Version) -> None:
    """Points the variant's alias at the version, which is a candidate no longer."""
    aliases = client.get_registered_model(version.model).aliases
    if str(aliases.get(version.variant)) != str(version.number):
        settled(lambda: client.set_registered_model_alias(version.model, version.variant, str(version.number)))
    if version.is_candidate:
        client.delete_model_version_tag(version.model, str(version.number), CANDIDATE)


def describe(client: "MlflowClient", version: Version, tags: Mapping[str, str], text: str) -> Version:
    """The version, showing these tags and this text; metrics of an older report that have no successor are gone."""
    number = str(version.number)
    stale = {tag for tag in version.tags if tag.startswith(METRIC_TAG)} - tags.keys()
    for tag in sorted(stale):
        client.delete_model_version_tag(version.model, number, tag)
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            client.set_model_version_tag(version.model, number, tag, value)
    client.update_model_version(version.model, number, text)
    kept = {tag: value for tag, value in version.tags.items() if tag not in stale}
    return replace(version, tags=kept | {**tags})


def withdraw(client: "MlflowClient", version: Version) -> None:
    """The version, its logged model and its run are gone from sight; `mlflow gc` removes the files."""
    client.delete_model_version(version.model, str(version.number))
    client.delete_logged_model(version.model_id)
    client.delete_run(version.run_id)


def _version(entry: "ModelVersion") -> Version:
    # MLflow leaves model_id empty in what a search returns; the source names it: models:/m-….
    model_id = entry.source.removeprefix("models:/")
    made = int(entry.creation_timestamp or 0)
    return Version(entry.name, int(entry.version), dict(entry.tags), entry.run_id, model_id, created_ms=made)


def _model_exists(client: "MlflowClient", model_id: str) -> bool:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 (loaded by now)

    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
