"""One copy of the weights: a logged model's files are the artifact's own files under a second name.

Where MLflow keeps its files on the same filesystem, each is a hard link: it takes no space, and it stays when DVC
removes models/K at the next run. Where it does not, the files travel once, through MLflow's client. The price of a
link: who writes *into* a file of the artifact writes into the registry too, so artifacts are only ever written
afresh (`fresh_folder`), and whoever takes one out of the registry verifies it.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.manifest import MANIFEST, Manifest
from registry.store import local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)

Placed = Literal["linked", "uploaded"]


def place(client: "MlflowClient", model: "LoggedModel", folder: Path, manifest: Manifest) -> Placed:
    """Puts the artifact's files where the logged model keeps its own, and says how."""
    target = local_path(model.artifact_location)
    if target is not None and _linked(folder, target, [*manifest.files, MANIFEST]):
        return "linked"
    client.log_model_artifacts(model.model_id, str(folder))
    return "uploaded"


def discard(model: "LoggedModel") -> None:
    """Takes back what `place` put into a local store; a server keeps what it has."""
    target = local_path(model.artifact_location)
    if target is not None:
        shutil.rmtree(target, ignore_errors=True)


def missing(client: "MlflowClient", model: "LoggedModel", manifest: Manifest) -> list[str]:
    """The files a logged model should hold and does not, or holds at another size."""
    target = local_path(model.artifact_location)
    sizes = _remote_sizes(client, model.model_id) if target is None else _local_sizes(target)
    wrong = [name for name, file in manifest.files.items() if sizes.get(name) != file.size_bytes]
    return wrong + ([] if MANIFEST in sizes else [MANIFEST])


def _linked(folder: Path, target: Path, names: list[str]) -> bool:
    """Whether the filesystem takes links from one to the other; if so, all names are linked."""
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).unlink(missing_ok=True)
            os.link(folder / name, target / name)
    except OSError as error:
        if error.errno in UNLINKABLE:
            return False
        raise
    return True


def _local_sizes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def _remote_sizes(client: "MlflowClient", model_id: str, path: str | None = None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in client.list_logged_model_artifacts(model_id, path):
        sizes |= _remote_sizes(client, model_id, entry.path) if entry.is_dir else {entry.path: entry.file_size}
    return sizes
