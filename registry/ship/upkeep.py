"""Looking after a place: which releases there are, going back to one, and letting go of old ones."""

from dataclasses import dataclass

from registry.errors import RegistryError
from registry.ship.contents import record_of, records, verify_release
from registry.ship.place import RELEASES, Place, Pointer
from registry.ship.release import Record
from registry.ship.verbs import Exported


@dataclass(frozen=True)
class Listed:
    """A release at a place."""

    digest: str
    record: Record
    is_current: bool


def rollback(place: Place, to: str | None = None) -> Exported:
    """The release that was current before this one, or the one whose digest begins so, is current again."""
    with place.alone():
        pointer, whole = place.pointer(), {listed.digest for listed in releases(place)}
        earlier = [digest for digest in pointer.before if digest in whole and digest != pointer.digest]
        chosen = named(place, to, whole) if to else (earlier[-1] if earlier else None)
        if chosen is None:
            known = ", ".join(sorted(d[:12] for d in whole)) or "none"
            raise RegistryError(f"{place.url}: nothing was current before; choose one with --to (there are: {known})")
        verify_release(place, record_of(place, chosen))
        before = pointer.before[: pointer.before.index(chosen)] if chosen in pointer.before else pointer.before
        place.point(Pointer(chosen, tuple(before)))
        return Exported(place.url, chosen, 0, 0, pointer.digest)


def releases(place: Place) -> list[Listed]:
    """Every whole release, the current one last and before it those that were current, in that order."""
    pointer = place.pointer()
    order = [*pointer.before, pointer.digest]
    found = [Listed(record.digest, record, record.digest == pointer.digest) for record in records(place)]
    return sorted(found, key=lambda listed: order.index(listed.digest) if listed.digest in order else -1)


def collect_garbage(place: Place, keep: int, *, unfinished: bool = False, dry_run: bool = False) -> list[str]:
    """Removes all but the current release and the `keep` − 1 that were current last; says what it removed."""
    if keep < 1:
        raise RegistryError(f"--keep {keep}: would remove the current release; keep 1 at least")
    with place.alone():
        listed = releases(place)
        doomed = [
            f"{RELEASES}/{entry.digest}" for entry in listed[: max(0, len(listed) - keep)] if not entry.is_current
        ]
        doomed += place.unfinished() if unfinished else []
        for folder in doomed if not dry_run else []:
            place.remove(folder)
        return doomed


def verify_releases(place: Place) -> list[Listed]:
    """Every release, when all their bytes are what their records say."""
    found = releases(place)
    for listed in found:
        verify_release(place, listed.record)
    return found


def named(place: Place, beginning: str, whole: set[str]) -> str:
    """The one release whose digest begins so."""
    found = sorted(digest for digest in whole if digest.startswith(beginning))
    if len(found) != 1:
        known = ", ".join(sorted(digest[:12] for digest in whole)) or "none"
        raise RegistryError(f"{place.url}: --to {beginning}: names {len(found)} releases (there are: {known})")
    return found[0]
