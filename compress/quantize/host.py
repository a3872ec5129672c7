"""How much of the host's memory this process may still take."""

from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")  # Linux control groups, version 2; elsewhere there is none


def free_memory(groups: Path = GROUPS, of: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: what the machine has free, or less where a container or a systemd unit has a limit of its own.

    A group's limit counts with all that it is inside of. Cached files count as free: the kernel lets go of them.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(groups, of)])


def _left_in_groups(groups: Path, of: Path) -> list[int]:
    lines = of.read_text("utf8").splitlines() if of.is_file() else []
    names = [line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")]
    within = [folder for name in names for folder in [groups / name, *(groups / name).parents]]
    return [left for folder in within if folder.is_relative_to(groups) and (left := _left(folder)) is not None]


def _left(folder: Path) -> int | None:
    """Of a group; None where it has no limit, as the outermost never has."""
    limit = folder / "memory.max"
    if not limit.is_file() or (said := limit.read_text("ascii").strip()) == "max":
        return None
    kinds = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
    cached = int(kinds["active_file"]) + int(kinds["inactive_file"])
    return int(said) - int((folder / "memory.current").read_text("ascii")) + cached
