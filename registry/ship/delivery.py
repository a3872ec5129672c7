"""What sending and fetching share: what need not travel, whether the rest finds room, and the files side by side."""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from registry.errors import RegistryError
from registry.manifest import File
from registry.ship.contents import AT_ONCE, records
from registry.ship.place import RELEASES, Place


def held_already(place: Place, files: Mapping[str, File], arrived: Collection[str]) -> dict[str, str]:
    """Of the files that have not arrived at a place, those that a release there has, each with where it lies there."""
    there = {(f.sha256, f.size_bytes): f"{RELEASES}/{r.digest}/{n}" for r in records(place) for n, f in r.files.items()}
    missing = {name: file for name, file in files.items() if name not in arrived and file.size_bytes > 0}
    return {name: old for name, file in missing.items() if (old := there.get((file.sha256, file.size_bytes)))}


def refuse_full(place: Place, needed_bytes: int, otherwise: str) -> None:
    """Refuses what finds no room; `otherwise` is what to do where nothing there can go."""
    free = place.free_bytes()
    if free is not None and free < needed_bytes:
        said = f"needs {needed_bytes:,} bytes and the disk has {free:,}"
        raise RegistryError(f"{place.url}: {said}; remove old releases (turbopress gc) or {otherwise}")


def side_by_side(files: Mapping[str, File], deliver: Callable[[str, File], None]) -> None:
    """Every file is delivered, several at once; the largest go first, so that the last to arrive is a small one."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        largest_first = sorted(files, key=lambda name: -files[name].size_bytes)
        for _ in pool.map(lambda name: deliver(name, files[name]), largest_first):
            pass
