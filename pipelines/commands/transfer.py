"""Where a transfer stands: a live bar on a terminal, a few lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

from registry.ship.verbs import Watcher

LINES = 10  # of one transfer, at most about


@contextmanager
def showing(done: str) -> Iterator[Watcher]:
    """A watcher who shows on stderr what goes over the wire; `done` is the word for it, as `sent`."""
    if not sys.stderr.isatty():
        yield _Lines(done)
        return
    speed = (TransferSpeedColumn(), TimeRemainingColumn())
    columns = ("{task.description}", BarColumn(), DownloadColumn(binary_units=True), *speed)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(done, progress)


class _Bar:
    def __init__(self, done: str, progress: Progress) -> None:
        self._done, self._progress, self._task = done, progress, TaskID(0)

    def begin(self, total_bytes: int) -> None:
        self._task = self._progress.add_task(self._done, total=total_bytes)

    def advance(self, arrived_bytes: int) -> None:
        self._progress.advance(self._task, arrived_bytes)


class _Lines:
    """Several threads tell it; a line when another tenth has arrived."""

    def __init__(self, done: str) -> None:
        self._done = done
        self._total = self._arrived = self._told = 0
        self._start, self._lock = time.monotonic(), threading.Lock()

    def begin(self, total_bytes: int) -> None:
        self._total = total_bytes

    def advance(self, arrived_bytes: int) -> None:
        with self._lock:
            self._arrived += arrived_bytes
            tenth = LINES * self._arrived // max(1, self._total)
            if tenth <= self._told:
                return
            self._told = tenth
            elapsed_s = time.monotonic() - self._start
            line = f"{self._done} {self._arrived / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, {elapsed_s:.1f} s"
            print(line, file=sys.stderr, flush=True)
