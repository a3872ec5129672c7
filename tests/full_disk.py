"""A disk that is full from a moment on: files grow to so many bytes and no further."""

import signal
from contextlib import contextmanager

import pytest


@contextmanager
def full_disk():
    """Yields what fills the disk; behind the block there is room again."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ended_by = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda size_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ended_by)
