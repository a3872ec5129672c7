"""Further findings about an artifact that is a version already: files beside the plots of the run that made it one."""

from collections.abc import Sequence
from pathlib import Path

from registry.errors import RegistryError
from registry.store import connect, explained
from registry.versions import Version, find


def attach(files: Sequence[Path], *, root: Path, model: str, variant: str, digest: str, place: str) -> Version:
    """The version of the artifact DIGEST, whose run holds the files under PLACE now; those of an earlier time go."""
    for file in files:
        if not file.is_file():
            raise RegistryError(f"{file}: no such file; write it first")
    store = connect(root)
    with explained(f"{store.uri}: {variant}"), store.alone():
        version = find(store.client, model, digest, variant)
        if version is None:
            raise RegistryError(f"{store.uri}: {model} has no version of {variant} with these bytes; run: dvc repro")
        for file in files:
            store.client.log_artifact(version.run_id, str(file), place)
    return version
