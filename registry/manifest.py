"""An artifact describes itself: what it is, what it was made from, and the sha256 of each of its files.

`seal` writes manifest.json as the last file of a finished folder; `verify` reads every byte again and refuses a
folder that is not exactly what was sealed. The artifact's name everywhere (registry, releases, a child's `parents`)
is its digest: the sha256 of the list of files. No date, no timing and no path of a machine lies inside, so equal
inputs give equal bytes and equal digests.

`fresh_folder` is how an artifact comes into being: in a sibling, renamed when finished, so that a folder that
exists is whole.
"""

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from registry.errors import RegistryError
from registry.hashing import sha256_files, sha256_json
from registry.locks import held_now

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # of a signed artifact: over every file, so it cannot be one of them
RELEASE = {"release.json", "serving/serve.yaml", "serving/turbopress.service", "serving/compose.yaml"}
UNSEALED = {
    MANIFEST,
    SIGNATURE,
} | RELEASE  # what may lie beside the sealed files: a release's own, listed in its record
FORMAT: Final = "turbopress-artifact/1"
REMAKE = "make the artifact again (dvc repro) or fetch it again (dvc checkout)"

Kind = Literal["base", "pruned", "distilled", "quantized", "repaired"]
IN_FEW_BITS: tuple[Kind, ...] = ("quantized", "repaired")


class File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What manifest.json says. `parents` maps a role ("from", "teacher") to the digest of that artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["turbopress-artifact/1"]
    kind: Kind
    recipe: dict[str, JsonValue]  # what was done, with all its numbers
    parents: dict[str, str]
    data: dict[str, str]  # name → sha256 of the token ids used
    seed: int | None
    origin: dict[str, str]  # source and revision of the base model; children inherit it
    versions: dict[str, str]  # library → version
    made_on: dict[str, str | int | bool] = {}  # what of the machine decided the bytes, where any of it did
    files: dict[str, File]  # path inside the folder → what must lie there

    @property
    def digest(self) -> str:
        """The artifact's name: equal for equal files, whatever the folder is called."""
        return sha256_json([[path, f.size_bytes, f.sha256] for path, f in sorted(self.files.items())])

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())


def seal(
    folder: Path,
    *,
    kind: Kind,
    recipe: Mapping[str, JsonValue],
    parents: Mapping[str, str],
    data: Mapping[str, str],
    seed: int | None,
    origin: Mapping[str, str],
    versions: Mapping[str, str],
    made_on: Mapping[str, str | int | bool] | None = None,
) -> Manifest:
    """Hashes every file of the finished folder and writes manifest.json beside them; seal last."""
    names = sorted(_names(folder) - UNSEALED)
    if not names:
        raise RegistryError(f"{folder}: holds no file to seal; write the model first")
    manifest = Manifest(
        format=FORMAT,
        kind=kind,
        recipe=dict(recipe),
        parents=dict(parents),
        data=dict(data),
        seed=seed,
        origin=dict(origin),
        versions=dict(versions),
        made_on=dict(made_on or {}),
        files=dict(zip(names, _files(folder, names), strict=True)),
    )
    left_out = set() if manifest.made_on else {"made_on"}
    text = json.dumps(
        manifest.model_dump(exclude=left_out), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def described(folder: Path, *, origin: Mapping[str, str]) -> Manifest:
    """What a manifest would say of a base that nobody sealed: the files of the folder itself, and where it is from."""
    names = sorted(place.name for place in folder.iterdir() if place.is_file())  # a hub's cache links to them
    files = dict(zip(names, _files(folder, names), strict=True))
    facts: dict[str, object] = {"kind": "base", "recipe": {}, "parents": {}, "data": {}, "seed": None, "versions": {}}
    return Manifest.model_validate({"format": FORMAT, **facts, "origin": dict(origin), "files": files})


def read(folder: Path) -> Manifest:
    """What the folder says of itself, unchecked against its files; `verify` checks."""
    place = folder / MANIFEST
    content = _content(place)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise RegistryError(
            f"{place}: has format {found!r}, but {FORMAT!r} is read here; upgrade turbopress, or {REMAKE}"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        spot = ".".join(str(part) for part in first["loc"])
        raise RegistryError(f"{place}: {spot}: {first['msg']} (found {first['input']!r}); {REMAKE}") from error
    _refuse_climbing(place, manifest)
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a folder that holds exactly the bytes it was sealed with; anything else is refused."""
    manifest = verify_sizes(folder)
    _refuse(folder, _wrong_digests(folder, manifest))
    return manifest


def verify_sizes(folder: Path) -> Manifest:
    """The manifest of a folder that holds exactly its files, each in its size; their bytes are not read.

    A size tells in a microsecond what a digest tells in a minute.
    """
    manifest = read(folder)
    found = _names(folder) - UNSEALED
    faults = [f"{name} is missing" for name in sorted(manifest.files.keys() - found)]
    faults += [f"{name} is not in the manifest" for name in sorted(found - manifest.files.keys())]
    _refuse(folder, faults or _wrong_sizes(folder, manifest))
    return manifest


def _refuse(folder: Path, faults: list[str]) -> None:
    if faults:
        raise RegistryError(f"{folder}: {'; '.join(faults)}; {REMAKE}")


def require_free(path: Path) -> None:
    """Refuses a place where something lies; an empty folder is nothing."""
    if os.path.lexists(path) and not _is_empty_folder(path):
        raise RegistryError(f"{path}: exists already, and nothing is written over; remove it first")


@contextmanager
def fresh_folder(path: Path, key: str | None = None) -> Iterator[Path]:
    """Yields an empty sibling of `path`: on success it is flushed and becomes `path`, on any exception it is gone.

    `path` must not exist, or be an empty folder. What a killed process left beside it is swept away first. With a
    `key` that names all that decides the content, what was left under the same key is yielded again instead; an
    interruption leaves it for the next try, and so does a RuntimeError, which a device out of memory raises.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = unfinished(path, key)
    _sweep(path, kept=incoming)
    try:
        incoming.mkdir(exist_ok=key is not None)
        with _alone(incoming):
            yield incoming
            _flush(incoming)
            os.rename(incoming, path)  # takes the place of an empty folder in the same step
            fsync(path.parent)
    except BaseException as error:
        refused = isinstance(error, Exception) and not isinstance(error, RuntimeError)
        if key is None or refused:
            shutil.rmtree(incoming, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RegistryError(f"{path}: the disk is full; free space there and run again") from error
        raise


def unfinished(path: Path, key: str | None) -> Path:
    """Where `fresh_folder` makes what becomes `path`."""
    return path.with_name(f".{path.name}.incoming-{os.getpid() if key is None else key[:16]}")


@contextmanager
def _alone(incoming: Path) -> Iterator[None]:
    with held_now(incoming) as alone:
        if not alone:
            raise RegistryError(f"{incoming}: another process is at work there; wait for it, or end it")
        yield


def _content(place: Path) -> object:
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RegistryError(f"{place}: there is no manifest, so this is no artifact; {REMAKE}") from None
    except ValueError as error:
        raise RegistryError(f"{place}: is not JSON ({error}); {REMAKE}") from error


def _wrong_sizes(folder: Path, manifest: Manifest) -> list[str]:
    sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    return [
        f"{name} has {sizes[name]} bytes, expected {file.size_bytes}"
        for name, file in manifest.files.items()
        if sizes[name] != file.size_bytes
    ]


def _wrong_digests(folder: Path, manifest: Manifest) -> list[str]:
    digests = sha256_files(folder / name for name in manifest.files)
    return [
        f"{name} was altered: its sha256 is {digest}, expected {file.sha256}"
        for (name, file), digest in zip(manifest.files.items(), digests, strict=True)
        if digest != file.sha256
    ]


def _files(folder: Path, names: list[str]) -> list[File]:
    digests = sha256_files(folder / name for name in names)
    sizes = [(folder / name).stat().st_size for name in names]
    return [File(sha256=digest, size_bytes=size) for digest, size in zip(digests, sizes, strict=True)]


def _names(folder: Path) -> set[str]:
    """The files below the folder, as paths with forward slashes; what is neither file nor folder is refused."""
    names = set()
    for place in folder.rglob("*"):
        if place.is_symlink():
            remedy = "replace it by the file it points to (under DVC: dvc config cache.type hardlink,copy)"
            raise RegistryError(f"{place}: is a symbolic link to {os.readlink(place)}; {remedy}")
        if place.is_file():
            names.add(place.relative_to(folder).as_posix())
        elif not place.is_dir():
            raise RegistryError(f"{place}: is neither a file nor a folder; remove it")
    return names


def _refuse_climbing(place: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or "\\" in name or name == MANIFEST:
            raise RegistryError(f"{place}: lists {name!r}, which is no path inside the artifact; {REMAKE}")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _sweep(path: Path, kept: Path) -> None:
    """Removes the unfinished siblings whose makers are dead, but for `kept`: the living hold a lock on theirs."""
    for stale in set(path.parent.glob(f".{glob.escape(path.name)}.incoming-*")) - {kept}:
        with held_now(stale) as abandoned:
            if abandoned:
                shutil.rmtree(stale)


def _flush(folder: Path) -> None:
    for place in [*folder.rglob("*"), folder]:
        fsync(place)


def fsync(place: Path) -> None:
    """Returns when a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
