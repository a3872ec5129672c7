"""Exporting: an artifact becomes the current release of a place.

An export sends files side by side, goes on where a killed one ended, and writes the record last; only then does the
pointer move, in one step. Killed at any point it leaves readers with the release they had, and the next run heals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Protocol

from registry.manifest import File, Manifest, verify, verify_sizes
from registry.ship.contents import record_of, refuse_incomplete, verify_release
from registry.ship.delivery import held_already, refuse_full, side_by_side
from registry.ship.place import RELEASES, Place, Pointer
from registry.ship.release import RECORD, Parcel, pack


class Watcher(Protocol):
    """Is told what goes over the wire."""

    def begin(self, total_bytes: int) -> None: ...

    def advance(self, arrived_bytes: int) -> None: ...


class Nobody:
    """A watcher who does not look."""

    def begin(self, total_bytes: int) -> None:
        """Is told how much there will be."""

    def advance(self, arrived_bytes: int) -> None:
        """Is told of each piece; what did not count after all is taken back as a negative number."""


@dataclass(frozen=True)
class Plan:
    """What an export would do."""

    parcel: Parcel
    whole: bool  # the release is there already
    send: tuple[str, ...]  # files that go over the wire
    take: Mapping[str, str]  # files that another release there has
    pointer: Pointer

    @property
    def send_bytes(self) -> int:
        return sum(self.parcel.record.files[name].size_bytes for name in self.send)

    @property
    def is_current(self) -> bool:
        return self.whole and self.pointer.digest == self.parcel.record.digest


@dataclass(frozen=True)
class Exported:
    """Where a release now is, and what it took; `before` was current until then."""

    how: ClassVar = "sent"
    where: ClassVar = "there"

    url: str
    digest: str
    sent_bytes: int
    reused_bytes: int
    before: str | None

    @property
    def moved(self) -> bool:
        return self.before != self.digest

    def __str__(self) -> str:
        sent = f"{self.how} {self.sent_bytes:,} bytes" if self.sent_bytes else "was there already"
        reused = f", {self.reused_bytes:,} bytes were {self.where} in other releases" if self.reused_bytes else ""
        return f"{self.url}/{RELEASES}/{self.digest}: {sent}{reused}; current points at it"


def plan(place: Place, folder: Path, of: str, made: Mapping[str, bytes]) -> Plan:
    """What exporting the artifact in `folder` would send; reads, and changes nothing."""
    parcel = pack(folder, verify_sizes(folder), of, made)
    record, pointer = parcel.record, place.pointer()
    if place.read(f"{RELEASES}/{record.digest}/{RECORD}") is not None:
        refuse_incomplete(place, record_of(place, record.digest))
        return Plan(parcel, True, (), {}, pointer)
    arrived = place.sizes(place.incoming(record.digest))
    take = held_already(place, record.files, arrived)
    send = tuple(n for n, f in record.files.items() if n not in take and arrived.get(n) != f.size_bytes)
    return Plan(parcel, False, send, take, pointer)


def export(
    place: Place, folder: Path, *, of: str, made: Mapping[str, bytes] | None = None, watcher: Watcher | None = None
) -> Exported:
    """The artifact in `folder`, with the files `made` for its server, is the current release of the place."""
    with place.alone():
        planned = plan(place, folder, of, made or {})
        record = planned.parcel.record
        if not planned.whole:
            refuse_full(place, planned.send_bytes, "export elsewhere")
            if place.is_far:
                verify(folder)  # before a byte is sent in vain; elsewhere what arrived is hashed, and that tells too
            _send(place, planned, watcher or Nobody())
        elif not planned.is_current:
            verify_release(place, record_of(place, record.digest))
        switch(place, record.digest, planned.pointer)
        reused = sum(record.files[name].size_bytes for name in planned.take)
        return Exported(place.url, record.digest, planned.send_bytes, reused, planned.pointer.digest)


def _send(place: Place, planned: Plan, watcher: Watcher) -> None:
    record, incoming = planned.parcel.record, place.incoming(planned.parcel.record.digest)
    watcher.begin(record.size_bytes)
    with TemporaryDirectory() as scratch:

        def deliver(name: str, file: File) -> None:
            source, target = planned.parcel.local(name, Path(scratch)), f"{incoming}/{name}"
            if name in planned.take and place.take(target, planned.take[name]) and place.holds(target, file, source):
                watcher.advance(file.size_bytes)
            else:
                place.send(source, target, file, watcher.advance)

        side_by_side(record.files, deliver)
    refuse_incomplete(place, record, incoming)
    try:
        place.settle(record.digest, record.as_json())
    except Exception:
        if place.read(f"{RELEASES}/{record.digest}/{RECORD}") is None:
            raise  # else another machine has just sent the same release


def switch(place: Place, digest: str, pointer: Pointer) -> None:
    """The release is current, and what was current before it is remembered."""
    if pointer.digest != digest:
        before = [*(d for d in (*pointer.before, pointer.digest) if d is not None and d != digest)]
        place.point(Pointer(digest, tuple(before)))


def artifact_of(manifest: Manifest) -> str:
    """How an artifact that no registry knows is called in a record."""
    return f"{manifest.kind} {manifest.digest[:12]}"
