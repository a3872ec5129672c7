"""Where a version comes from: its parents, theirs, and for each the data, the code and the pipeline it was made with.

A parent is named by its digest in the child's tags; that it is registered too makes it a node of the graph, and one
that is not yet is a node that says so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.store import Store
from registry.versions import Version, find

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG, DATA_TAG, BASE_TAG = "parent.", "data.", "base."
LINEAGE_TAG = "lineage"
COMMIT, DIRTY, LOCK = "mlflow.source.git.commit", "git.dirty", "dvc.lock.md5"
DEEPEST = 32  # generations; tags that somebody edited into a circle end here


@dataclass(frozen=True)
class Node:
    """An artifact of the graph, by the role it plays for its child ("from", "teacher"); "" for the one asked about."""

    role: str
    digest: str
    version: Version | None  # None where it is not registered
    base: Mapping[str, str]  # source and revision of the base
    data: Mapping[str, str]  # name → sha256 of the token ids
    commit: str | None
    is_dirty: bool | None  # whether the working tree had changes that no commit holds
    dvc_lock_md5: str | None
    parents: tuple["Node", ...]


def lineage(store: Store, version: Version) -> Node:
    """The graph of everything the version was made from."""
    return _node(store.client, "", version.digest, version, DEEPEST)


def ancestry(client: "MlflowClient", version: Version, deepest: int = DEEPEST) -> str:
    """The graph in one line: `student-awq-w4 ← student ← (shallow ← base, base)`."""
    parents = [_known(client, version.model, digest) for digest in _parents(version).values()]
    told = [ancestry(client, p, deepest - 1) if isinstance(p, Version) and deepest else str(p) for p in parents]
    if not told:
        return version.variant
    return f"{version.variant} ← " + (told[0] if len(told) == 1 else f"({', '.join(told)})")


def tell_ancestry(client: "MlflowClient", version: Version) -> None:
    """The version's tag `lineage`, which MLflow's page shows, says what it comes from."""
    said = ancestry(client, version)
    if version.tags.get(LINEAGE_TAG) != said:
        client.set_model_version_tag(version.model, str(version.number), LINEAGE_TAG, said)


def _known(client: "MlflowClient", model: str, digest: str) -> Version | str:
    return find(client, model, digest) or f"{digest[:12]} (not registered)"


def _node(client: "MlflowClient", role: str, digest: str, version: Version | None, deepest: int) -> Node:
    if version is None:
        return Node(role, digest, None, {}, {}, None, None, None, ())
    run = client.get_run(version.run_id)
    told, model = run.data.tags, version.model
    parents = _parents(version) if deepest else {}
    dirty = told.get(DIRTY)
    return Node(
        role,
        digest,
        version,
        _under(version.tags, BASE_TAG),
        _under(version.tags, DATA_TAG) or _logged_data(run),
        told.get(COMMIT),
        None if dirty is None else dirty == "true",
        told.get(LOCK),
        tuple(_node(client, r, d, find(client, model, d), deepest - 1) for r, d in parents.items()),
    )


def _parents(version: Version) -> dict[str, str]:
    return _under(version.tags, PARENT_TAG)


def _under(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {tag.removeprefix(prefix): value for tag, value in sorted(tags.items()) if tag.startswith(prefix)}


def _logged_data(run: object) -> dict[str, str]:
    """Data digests of a version that was registered before its tags had them, the evaluation's left out."""
    inputs = run.inputs.dataset_inputs  # type: ignore[attr-defined]  # MLflow's Run, which has no types
    said = {listed.dataset.name: json.loads(listed.dataset.source)["sha256"] for listed in inputs}
    return {name: sha256 for name, sha256 in said.items() if name != "evaluation"}
