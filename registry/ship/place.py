"""What shipping needs of a place, however it is reached; `open_place` finds the right one for an address.

Names are paths below the place, with forward slashes. Every method either did what it says or raised; all of them
may be called from several threads at once.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from registry.errors import RegistryError
from registry.manifest import File

RELEASES = "releases"
THEIRS = ("asyncssh", "sshfs", "botocore", "aiobotocore", "aiohttp", "s3fs")  # whose exceptions a far end explains

Advance = Callable[[int], None]  # told how many bytes have arrived


@dataclass(frozen=True)
class Pointer:
    """The release that servers read, and those that they read before it, oldest first."""

    digest: str | None
    before: tuple[str, ...]


class Place(Protocol):
    """A folder of releases, here or elsewhere."""

    url: str  # as a person may see it: without a secret
    is_far: bool  # whether sending costs more than hashing: what is sent is verified here first then

    def alone(self) -> AbstractContextManager[None]:
        """Waits until nobody else on this machine writes here, where that can be known."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file's content, None where there is none."""
        ...

    def digests(self) -> list[str]:
        """Releases by name, whole or not."""
        ...

    def unfinished(self) -> list[str]:
        """Folders of uploads that did not end."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below the folder, by its path in it; empty where there is none."""
        ...

    def incoming(self, digest: str) -> str:
        """The folder that a release of this digest is sent to."""
        ...

    def take(self, name: str, old: str) -> bool:
        """Makes `name` the same file as `old`, without sending it; False where the far end cannot."""
        ...

    def send(self, source: Path, name: str, file: File, advance: Advance) -> None:
        """`name` has exactly the bytes of the file, checked where they lie; goes on where a killed call ended."""
        ...

    def holds(self, name: str, file: File, source: Path | None = None) -> bool:
        """Whether the bytes that lie there are those of the file; some places tell sooner with the file at hand."""
        ...

    def piece(self, name: str, start: int, size_bytes: int) -> bytes:
        """So many bytes of a file from there on, fewer where it ends."""
        ...

    def settle(self, digest: str, record: bytes) -> None:
        """What was sent is a release from here on, its record with it."""
        ...

    def pointer(self) -> Pointer: ...

    def point(self, pointer: Pointer) -> None:
        """Readers find the old release until they find the new one, and never neither."""
        ...

    def remove(self, folder: str) -> None: ...

    def free_bytes(self) -> int | None:
        """Room that is left, None where the far end does not say."""
        ...


def open_place(address: str) -> Place:
    """The place that a path, an sftp:// or an s3:// address names."""
    parts = urlsplit(address)
    match parts.scheme:
        case "sftp" | "ssh":
            from registry.ship.sftp import SftpPlace  # noqa: PLC0415 - an extra

            _refuse_secret(address)
            return SftpPlace(address)
        case "s3":
            from registry.ship.s3 import S3Place  # noqa: PLC0415 - an extra

            _refuse_secret(address)
            return S3Place(address)
        case "file":
            from registry.ship.folder import FolderPlace  # noqa: PLC0415

            return FolderPlace(Path(parts.path))
        case "":
            from registry.ship.folder import FolderPlace  # noqa: PLC0415

            return FolderPlace(Path(address))
    raise RegistryError(f"{address}: {parts.scheme}:// is no place to export to; give a folder, sftp:// or s3://")


@contextmanager
def explained_place(url: str) -> Iterator[None]:
    """What a far end or its network refuses comes out in one line that names the place."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in THEIRS:
            raise
        reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        raise RegistryError(f"{url}: refused: {reason}; mend that and run again, which goes on from here") from error


def needs(url: str, extra: str, error: ImportError) -> RegistryError:
    """What to install for an address of this kind."""
    return RegistryError(f"{url}: {error.name} is not installed; run: pip install 'turbopress[{extra}]'")


def _refuse_secret(address: str) -> None:
    parts = urlsplit(address)
    if parts.password is not None:
        shown = address.replace(f":{parts.password}@", ":…@")
        raise RegistryError(f"{shown}: holds a password, which would end in logs; use a key, an agent or a profile")
