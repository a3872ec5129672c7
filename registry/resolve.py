"""From a name to a folder: the files of `internlm2-demo@awq-w4` or `internlm2-demo/3`, wherever MLflow keeps them.

A local store's files are read where they lie. A server's are downloaded once into the user's cache, under the
artifact's digest, verified, and found there from then on.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from registry.errors import RegistryError
from registry.manifest import fresh_folder, read, verify
from registry.store import Store, connect, explained, local_path
from registry.versions import Version, versions

REFERENCE = re.compile(r"(?:models:/)?(?P<model>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<number>\d+))")


def resolve(reference: str, *, root: Path) -> Path:
    """The folder of the artifact that `name@alias` or `name/version` means now.

    The folder says it is that artifact; whether its bytes are still the sealed ones, `verify` says.
    """
    return resolve_version(reference, root=root)[0]


def resolve_version(reference: str, *, root: Path) -> tuple[Path, Version]:
    """The folder of the artifact, and the version that the reference means."""
    store = connect(root)
    with explained(store.uri):
        version = find_version(store, reference)
        folder = _folder(store, version)
    if (found := read(folder).digest) != version.digest:
        remedy = "remove the folder and publish the artifact again"
        raise RegistryError(f"{folder}: holds artifact {found}, but {reference} is {version.digest}; {remedy}")
    return folder, version


def find_here(reference: str, *, root: Path) -> Path | None:
    """The folder of the artifact where its files are on this machine; None where they would have to be fetched."""
    store = connect(root)
    with explained(store.uri):
        version = find_version(store, reference)
        folder = local_path(_location(store, version)) or _cache(version) / "artifacts"
    return folder if folder.is_dir() else None


def find_version(store: Store, reference: str) -> Version:
    """The version that `name@alias` or `name/version` means now."""
    parts = REFERENCE.fullmatch(reference)
    if parts is None:
        raise RegistryError(f"{reference!r}: names no version; write name@alias or name/number")
    return _chosen(listed_versions(store, parts["model"]), parts["alias"], parts["number"], reference)


def list_versions(model: str, *, root: Path) -> list[Version]:
    """All versions of the model that turbopress registered, newest first, with their aliases."""
    store = connect(root)
    with explained(store.uri):
        return listed_versions(store, model)


def listed_versions(store: Store, model: str) -> list[Version]:
    """All versions of the model that turbopress registered, newest first, with their aliases; refuses if none."""
    found = versions(store.client, f"name='{model}'")
    if not found:
        names = ", ".join(sorted(m.name for m in store.client.search_registered_models())) or "none"
        raise RegistryError(f"{store.uri}: has no model {model!r} (it has: {names}); run: dvc repro")
    aliases = store.client.get_registered_model(model).aliases
    pointing = [(alias, int(number)) for alias, number in aliases.items()]
    return [replace(v, aliases=tuple(sorted(a for a, number in pointing if number == v.number))) for v in found]


def _chosen(listed: list[Version], alias: str | None, number: str | None, reference: str) -> Version:
    for version in listed:
        if alias in version.aliases or number == str(version.number):
            return version
    known = ", ".join(f"@{a} → /{v.number}" for v in reversed(listed) for a in v.aliases) or "none"
    numbers = ", ".join(str(v.number) for v in reversed(listed))
    raise RegistryError(f"{reference}: no such version; aliases: {known}; versions: {numbers}")


def _folder(store: Store, version: Version) -> Path:
    location = _location(store, version)
    folder = local_path(location)
    if folder is None:
        return _downloaded(store, version, location)
    if not folder.is_dir():
        name = f"{version.model}/{version.number}"
        raise RegistryError(f"{folder}: the files of {name} are gone; put them back: dvc repro")
    return folder


def _location(store: Store, version: Version) -> str:
    return str(store.client.get_logged_model(version.model_id).artifact_location)


def _cache(version: Version) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turbopress" / version.digest


def _downloaded(store: Store, version: Version, location: str) -> Path:
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415 (loaded by now)

    cache = _cache(version)
    if not cache.exists():
        with fresh_folder(cache) as incoming:
            # Asked for by models:/m-…, MLflow would look into the store of the current directory.
            fetched = download_artifacts(artifact_uri=location, dst_path=str(incoming), tracking_uri=store.uri)
            verify(Path(fetched))
    return cache / "artifacts"
