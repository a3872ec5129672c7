"""What a process takes of the host's memory, and a limit on it that the kernel keeps.

A figure under a limit is worth something where going over it kills the process: a control group below our own does, and
whether it does is tried first, with a process that asks for too much.
"""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

from compress.quantize.host import FIRST, OF, memory_limit, own_group

TRIED = 2**27  # bytes: of the limit that a process is killed at before the real one is set
GREEDY = f"bytearray(b'x') * {4 * TRIED}"


class HostPeak:
    """The most memory since it began: resident, and of that what no file holds; page-locked memory apart."""

    def __init__(self, every_s=0.02):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (proc(5)): making the model took some
        self._anonymous, self._every_s, self._over = _status("RssAnon"), every_s, threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()

    def close(self):
        """The columns of a row, in GiB."""
        self._over.set()
        self._watch.join()
        parts = {"peak_host_gib": _status("VmHWM"), "peak_anonymous_gib": self._anonymous, "peak_locked_gib": _locked()}
        return {name: round(size / 2**30, 2) for name, size in parts.items()}

    def _sample(self):
        while not self._over.wait(self._every_s):
            self._anonymous = max(self._anonymous, _status("RssAnon"))


def _status(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _locked():
    """The driver's pages, in which windows wait: a group's limit need not count them."""
    return torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0) if torch.cuda.is_available() else 0


def host_gib():
    """The limit that is in force here, or None."""
    limit = memory_limit()
    return None if limit is None else round(limit / 2**30, 2)


def is_limited_to(gib):
    """Whether such a limit, or a narrower one, is in force."""
    limit = memory_limit()
    return limit is not None and limit <= gib * 2**30


def run_limited(gib, command):
    """The exit status of a command that the kernel kills when it takes more; refuses where no group would do that."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit("--host-gib: processes of torchrun share no group that is made here; run torchrun in one")
    with limited_group(int(gib * 2**30)) as group:
        return _run_in(group, command)


@contextmanager
def limited_group(size_bytes, of=OF):
    """A group with this limit; it is gone afterwards."""
    own = own_group(of=of)
    if own is None:
        raise _refusal("no control group counts memory here")
    folder, names = own
    folder = folder if names is FIRST else _with_memory(folder)
    group = folder / f"turbopress-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise _refusal(f"{folder}: {error.strerror}") from None
    try:
        _limit(group, names, TRIED)
        if _run_in(group, [sys.executable, "-c", GREEDY], stderr=subprocess.DEVNULL) == 0:
            raise _refusal(f"{folder}: its limits are not kept")
        _limit(group, names, size_bytes)
        yield group
    finally:
        group.rmdir()


def _with_memory(folder):
    """The nearest group around us whose children may have limits."""
    for place in (folder, *folder.parents):
        handed_down = place / "cgroup.subtree_control"
        if handed_down.is_file() and "memory" in handed_down.read_text().split():
            return place
    raise _refusal(f"{folder}: no group around it hands the limiting of memory down")


def _limit(group, names, size_bytes):
    """Memory, and no swap behind it."""
    if names is FIRST:
        (group / "memory.memsw.limit_in_bytes").write_text("-1")
        (group / names.limit).write_text(str(size_bytes))
        (group / "memory.memsw.limit_in_bytes").write_text(str(size_bytes))
    else:
        (group / names.limit).write_text(str(size_bytes))
        (group / "memory.swap.max").write_text("0")


def _run_in(group, command, **options):
    def enter():
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return subprocess.run([str(part) for part in command], preexec_fn=enter, check=False, **options).returncode


def _refusal(reason):
    return SystemExit(
        f"--host-gib: {reason}; run it with a limit: systemd-run --scope -p MemoryMax=24G, or a container"
    )
