"""Shipping an artifact into a folder that a server reads: releases that never change, and one link that moves.

`to/releases/<digest>/` is a complete copy, verified at its far end before it gets its name; `to/current` is
replaced in one step, so a reader sees the old release or the new one and never neither. Copies, not links: a
release must outlive the registry. A server is started on the resolved path (readlink -f current), because the link
moves under a running one.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from registry.errors import RegistryError
from registry.manifest import MANIFEST, Manifest, fresh_folder, verify
from registry.resolve import resolve

CURRENT = "current"


@dataclass(frozen=True)
class Exported:
    release: Path
    sent_bytes: int  # 0 when the release was there already

    def __str__(self) -> str:
        sent = f"sent {self.sent_bytes:,} bytes" if self.sent_bytes else "was there already and is unaltered"
        return f"{self.release}: {sent}; {CURRENT} points at it"


def export(reference: str, to: str | Path, *, root: Path) -> Exported:
    """The version `name@alias` or `name/number` is the current release in the folder `to`."""
    target = _local(to)
    return release(resolve(reference, root=root), target)


def release(folder: Path, to: Path) -> Exported:
    """The artifact in `folder` is the current release in `to`."""
    manifest = verify(folder)
    place = to / "releases" / manifest.digest
    sent_bytes = 0
    if place.exists():
        verify(place)
    else:
        _send(folder, manifest, place)
        sent_bytes = manifest.size_bytes
    _switch(to / CURRENT, place)
    return Exported(place, sent_bytes)


def _local(to: str | Path) -> Path:
    # Path("sftp://host/x") has become sftp:/host/x by the time it is seen here.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(to)):
        raise RegistryError(f"{to}: is an address, and export writes to folders; give a folder (or mount it)")
    return Path(to)


def _send(folder: Path, manifest: Manifest, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(place.parent).free
    if free_bytes < manifest.size_bytes:
        needs = f"needs {manifest.size_bytes:,} bytes and the disk has {free_bytes:,}"
        raise RegistryError(f"{place}: {needs}; remove old releases or export elsewhere")
    with fresh_folder(place) as incoming:
        for name in [*manifest.files, MANIFEST]:
            (incoming / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, incoming / name)
        verify(incoming)


def _switch(link: Path, place: Path) -> None:
    """Replaces the link in one step; it is relative, so the whole tree can be moved or mounted elsewhere."""
    if link.exists() and not link.is_symlink():
        raise RegistryError(f"{link}: is no link, so it is not ours to replace; move it away")
    target = os.path.relpath(place, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    incoming = link.with_name(f".{link.name}.incoming-{os.getpid()}")
    incoming.unlink(missing_ok=True)
    incoming.symlink_to(target)
    os.replace(incoming, link)
