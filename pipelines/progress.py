"""Where long work stands: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
LINES = 10  # plain lines for one piece of work, at most about


def show(items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items and says on stderr which of them is in work, with elapsed and remaining time."""
    return _bar(items, what) if sys.stderr.isatty() else _lines(items, what)


def _bar(items: Sequence[T], what: str) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, description=what)


def _lines(items: Sequence[T], what: str) -> Iterator[T]:
    start, every = time.monotonic(), max(1, len(items) // LINES)
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0 or number == len(items):
            elapsed_s = time.monotonic() - start
            left_s = elapsed_s / number * (len(items) - number)
            print(
                f"{what} {number} of {len(items)}, {elapsed_s:.1f} s, {left_s:.1f} s left", file=sys.stderr, flush=True
            )
