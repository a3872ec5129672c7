"""Where long work stands: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
LINES = 10  # plain lines for one piece of work, at most about


def show(items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items and says on stderr which of them is in work, with elapsed and remaining time."""
    return _bar(items, what) if sys.stderr.isatty() else _lines(items, what)


@dataclass(frozen=True)
class showing:  # noqa: N801 - called like `show`
    """`show` of items that each hold so many of a unit, which are told by the second."""

    each: int
    unit: str

    def __call__(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yields the items."""
        return _bar(items, what, self) if sys.stderr.isatty() else _lines(items, what, self)

    def rate(self, items_per_s: float) -> str:
        """So many units a second, in words."""
        return f", {items_per_s * self.each:,.0f} {self.unit}/s"


class _Rate(ProgressColumn):
    def __init__(self, unit: showing) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(self.unit.rate(task.speed or 0.0).removeprefix(", "))


def _bar(items: Sequence[T], what: str, unit: showing | None = None) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *([_Rate(unit)] if unit else []),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, description=what)


def _lines(items: Sequence[T], what: str, unit: showing | None = None) -> Iterator[T]:
    start, every = time.monotonic(), max(1, len(items) // LINES)
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0 or number == len(items):
            elapsed_s = time.monotonic() - start
            left_s = elapsed_s / number * (len(items) - number)
            rate = unit.rate(number / elapsed_s) if unit and elapsed_s else ""
            text = f"{what} {number} of {len(items)}, {elapsed_s:.1f} s, {left_s:.1f} s left{rate}"
            print(text, file=sys.stderr, flush=True)
