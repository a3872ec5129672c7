"""What bytes are called: sha256 of files, and of JSON values in one canonical spelling.

A model is gigabytes in a few large files. hashlib lets go of the interpreter's lock while it works, so files are
read side by side, each through one reused buffer: memory stays at a few MiB however large the model is.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import JsonValue

BUFFER_BYTES = 4 << 20
MAX_THREADS = 8


def sha256_json(value: JsonValue) -> str:
    """Equal values have equal digests, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    # hashlib.file_digest does this from Python 3.11 on.
    digest = hashlib.sha256()
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path]) -> list[str]:
    """One digest a path, in the order given."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_file, paths))
