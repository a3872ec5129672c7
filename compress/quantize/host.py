"""How much of the host's memory this process may still take."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")  # Linux control groups, of either version; elsewhere there are none
OF = Path("/proc/self/cgroup")
UNLIMITED = 2**62  # bytes; the first version of control groups says it in a number of this size


@dataclass(frozen=True)
class Names:
    """What a version of control groups calls a group's limit, what is taken of it, and its cached files."""

    limit: str
    taken: str
    cached: tuple[str, str]  # in memory.stat


SECOND = Names("memory.max", "memory.current", ("active_file", "inactive_file"))
FIRST = Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def free_memory(groups: Path = GROUPS, of: Path = OF) -> int:
    """Bytes: what the machine has free, or less where a container or a systemd unit has a limit of its own.

    A group's limit counts with all that it is inside of. Cached files count as free: the kernel lets go of them.
    """
    return min([psutil.virtual_memory().available, *(_left(*limited) for limited in _limited(groups, of))])


def memory_limit(groups: Path = GROUPS, of: Path = OF) -> int | None:
    """Bytes: the narrowest limit of the groups around this process, or None where there is no limit."""
    return min((_limit(folder, names) for folder, names in _limited(groups, of)), default=None)


def own_group(groups: Path = GROUPS, of: Path = OF) -> tuple[Path, Names] | None:
    """The group that counts this process's memory, or None where no group does."""
    for line in of.read_text("utf8").splitlines() if of.is_file() else []:
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, names = groups / "memory", FIRST
        elif not controllers:
            root, names = groups, SECOND
        else:
            continue
        if (root / name.lstrip("/")).is_dir():
            return root / name.lstrip("/"), names
    return None


def _limited(groups: Path, of: Path) -> Iterator[tuple[Path, Names]]:
    """This process's group and those that it is inside of, as far as they have a limit."""
    own = own_group(groups, of)
    if own is None:
        return
    folder, names = own
    for place in (folder, *folder.parents):
        if not place.is_relative_to(groups):
            return
        if (place / names.limit).is_file() and _limit(place, names) < UNLIMITED:  # the outermost group has none
            yield place, names


def _limit(folder: Path, names: Names) -> int:
    said = (folder / names.limit).read_text("ascii").strip()
    return UNLIMITED if said == "max" else int(said)


def _left(folder: Path, names: Names) -> int:
    """Bytes that a group may still take."""
    kinds = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
    cached = sum(int(kinds[kind]) for kind in names.cached)
    return _limit(folder, names) - int((folder / names.taken).read_text("ascii")) + cached
