"""A release: an artifact's files and what a server needs beside them, named by the digest of all of it.

`release.json`, written last, lists every file with its sha256: a release that has one is whole. Without files for
the server a release has the artifact's own digest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from registry.errors import RegistryError
from registry.hashing import sha256_file, sha256_json
from registry.manifest import MANIFEST, SIGNATURE, File, Manifest

RECORD = "release.json"
SERVING = "serving"  # the folder of a release that no artifact has
FORMAT: Final = "turbopress-release/1"


class Record(BaseModel):
    """What release.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["turbopress-release/1"]
    artifact: str  # its digest
    of: str  # the registered version it was first exported as
    files: dict[str, File]

    @property
    def digest(self) -> str:
        """The release's name; the manifest is left out, because the artifact's digest stands for it."""
        named = ((name, file) for name, file in sorted(self.files.items()) if name != MANIFEST)
        return sha256_json([[name, f.size_bytes, f.sha256] for name, f in named])

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    def as_json(self) -> bytes:
        text = json.dumps(self.model_dump(), indent=2, sort_keys=True, ensure_ascii=False)
        return (text + "\n").encode()


@dataclass(frozen=True)
class Parcel:
    """A release with where its files lie here: on the disk, or made a moment ago."""

    record: Record
    folder: Path
    made: Mapping[str, bytes]

    def local(self, name: str, scratch: Path) -> Path:
        """The file on this machine; what was only made is written to `scratch` first."""
        if name not in self.made:
            return self.folder / name
        place = scratch / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(self.made[name])
        return place


def pack(folder: Path, manifest: Manifest, of: str, made: Mapping[str, bytes]) -> Parcel:
    """The artifact in `folder` with the files `made` for its server."""
    files = dict(manifest.files)
    for name in (MANIFEST, SIGNATURE):
        if (folder / name).is_file():
            files[name] = File(sha256=sha256_file(folder / name), size_bytes=(folder / name).stat().st_size)
    files |= {
        name: File(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in made.items()
    }
    return Parcel(Record(format=FORMAT, artifact=manifest.digest, of=of, files=files), folder, made)


def parse_record(place: str, content: bytes) -> Record:
    """The record as it was written; anything else is refused, a path that climbs out above all."""
    try:
        said = json.loads(content)
        found = said.get("format") if isinstance(said, dict) else None
        if found != FORMAT:
            raise RegistryError(f"{place}: has format {found!r}, but {FORMAT!r} is read here; upgrade turbopress")
        record = Record.model_validate(said)
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise RegistryError(f"{place}: is no record of a release ({reason}); remove that release") from None
    for name in record.files:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise RegistryError(f"{place}: lists {name!r}, which is no path inside a release; remove that release")
    return record
