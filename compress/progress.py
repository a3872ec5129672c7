"""How long work reports itself: algorithms take a `Progress` and know nothing of terminals."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """Hands items on one by one and tells a watcher where the work stands."""

    def __call__(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yields the items; `what` names one of them, as in "layer"."""
        ...


def silent(items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items and tells nobody."""
    yield from items
