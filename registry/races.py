"""Two machines that write the same row at the same moment: a database lets one of them win and tells the other.

MLflow's server hands that on as an error. What it refused was written by the other, so asking again succeeds.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 6
FIRST_WAIT_S = 0.05
LOST = ("unique constraint", "uniqueviolation", "deadlock", "could not serialize", "database is locked")

T = TypeVar("T")


def settled(call: Callable[[], T]) -> T:
    """What the call returns, asked again when it lost a race; any other error passes."""
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as error:
            if attempt == TRIES - 1 or not any(words in str(error).lower() for words in LOST):
                raise
            time.sleep(FIRST_WAIT_S * 2**attempt * (1 + random.random()))  # noqa: S311 - apart, not secret
    raise AssertionError("unreachable")
