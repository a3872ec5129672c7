"""A release fetched from a place to a folder on this machine, for an engine that reads files.

What arrives is written to a hidden sibling, hashed from the disk against the record, and renamed; a killed pull goes on
where it ended. A file that another release here holds is linked, not fetched.
"""

from dataclasses import dataclass
from typing import ClassVar

from registry.errors import RegistryError
from registry.manifest import File, fsync
from registry.ship.contents import record_of, refuse_incomplete, verify_release
from registry.ship.delivery import held_already, refuse_full, side_by_side
from registry.ship.folder import PIECE_BYTES, FolderPlace
from registry.ship.place import RELEASES, Place
from registry.ship.release import RECORD, Record
from registry.ship.upkeep import named, releases
from registry.ship.verbs import Exported, Nobody, Watcher, switch


class Pulled(Exported):
    """A release that was fetched to here."""

    how: ClassVar = "fetched"
    where: ClassVar = "here"


@dataclass(frozen=True)
class Fetch:
    """A release on its way from one place to another."""

    source: Place
    target: FolderPlace
    record: Record
    watcher: Watcher

    @property
    def incoming(self) -> str:
        return self.target.incoming(self.record.digest)


def pull(source: Place, target: FolderPlace, *, release: str | None = None, watcher: Watcher | None = None) -> Pulled:
    """The source's current release, or the one whose digest begins so, is the current one of the folder."""
    with target.alone():
        record, pointer = record_of(source, _chosen(source, release)), target.pointer()
        fetched = reused = 0
        if target.read(f"{RELEASES}/{record.digest}/{RECORD}") is None:
            refuse_incomplete(source, record)
            fetched, reused = _fetch(Fetch(source, target, record, watcher or Nobody()))
        elif pointer.digest != record.digest:
            verify_release(target, record)
        switch(target, record.digest, pointer)
        return Pulled(target.url, record.digest, fetched, reused, pointer.digest)


def _chosen(source: Place, release: str | None) -> str:
    if release is not None:
        return named(source, release, {listed.digest for listed in releases(source)})
    current = source.pointer().digest
    if current is None:
        raise RegistryError(f"{source.url}: no release is current; export one first (turbopress export)")
    return current


def _fetch(fetch: Fetch) -> tuple[int, int]:
    """Bytes that came over the wire, and bytes that another release here had."""
    files, place = fetch.record.files, fetch.target
    arrived = place.sizes(fetch.incoming)
    take = held_already(place, files, arrived)
    missing = sum(max(0, f.size_bytes - arrived.get(n, 0)) for n, f in files.items() if n not in take)
    refuse_full(place, missing, "pull to another folder")
    fetch.watcher.begin(fetch.record.size_bytes)
    side_by_side(files, lambda name, file: _deliver(fetch, name, file, take.get(name)))
    refuse_incomplete(place, fetch.record, fetch.incoming)
    place.settle(fetch.record.digest, fetch.record.as_json())
    return missing, sum(files[name].size_bytes for name in take)


def _deliver(fetch: Fetch, name: str, file: File, old: str | None) -> None:
    """The file lies in the incoming folder, its bytes those of the record."""
    target = f"{fetch.incoming}/{name}"
    if old is not None and fetch.target.take(target, old) and fetch.target.holds(target, file):
        fetch.watcher.advance(file.size_bytes)
        return
    path = fetch.target.root / target
    for _ in range(2):  # what an earlier call left may be damaged; what this one fetches whole may not
        begun = _append(fetch, name, file)
        if fetch.target.holds(target, file):
            fsync(path)
            return
        fetch.watcher.advance(-file.size_bytes)
        path.unlink()
        if begun == 0:
            break
    raise RegistryError(f"{fetch.source.url}/{RELEASES}/{fetch.record.digest}/{name}: altered; export it there again")


def _append(fetch: Fetch, name: str, file: File) -> int:
    """Fetches what is missing and says from where on. Only a file that is too short is written to."""
    path = fetch.target.root / fetch.incoming / name
    path.parent.mkdir(parents=True, exist_ok=True)
    start = path.stat().st_size if path.is_file() else 0
    fetch.watcher.advance(min(start, file.size_bytes))
    if start < file.size_bytes or file.size_bytes == 0:
        place = f"{RELEASES}/{fetch.record.digest}/{name}"
        with path.open("ab") as out:
            for at in range(start, file.size_bytes, PIECE_BYTES):
                piece = fetch.source.piece(place, at, min(PIECE_BYTES, file.size_bytes - at))
                out.write(piece)
                fetch.watcher.advance(len(piece))
    return start
