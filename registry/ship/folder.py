"""A place on this machine, or mounted into it.

A release is copied to a hidden sibling, hashed again from what was written, and renamed; the pointer is a symbolic
link that is replaced in one step. Links are relative, so that the whole tree can be moved or mounted elsewhere.
"""

import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from registry.errors import RegistryError
from registry.hashing import sha256_file
from registry.locks import held
from registry.manifest import File, fsync
from registry.ship.place import RELEASES, Advance, Pointer
from registry.ship.release import RECORD

CURRENT, HISTORY = "current", "history.json"
INCOMING = ".incoming-"
PIECE_BYTES = 16 << 20


class FolderPlace:
    """Releases under a folder."""

    is_far = False

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digests(self) -> list[str]:
        return [name for name in self._listed() if not name.startswith(".")]

    def unfinished(self) -> list[str]:
        return [f"{RELEASES}/{name}" for name in self._listed() if name.startswith(INCOMING)]

    def _listed(self) -> list[str]:
        folder = self.root / RELEASES
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def sizes(self, folder: str) -> dict[str, int]:
        top = self.root / folder
        found = {}
        for place in top.rglob("*"):
            if place.is_symlink():
                raise RegistryError(f"{place}: is a symbolic link, and a release has none; remove that release")
            if place.is_file():
                found[place.relative_to(top).as_posix()] = place.stat().st_size
        return found

    def incoming(self, digest: str) -> str:
        return f"{RELEASES}/{INCOMING}{digest}"

    def take(self, name: str, old: str) -> bool:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.root / old, target)
        except OSError:  # another filesystem, or one without links: the file is sent then
            return False
        return True

    def send(self, source: Path, name: str, file: File, advance: Advance) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self._arrived(source, target, file, advance):
            advance(-file.size_bytes)
            target.unlink()
            if not self._arrived(source, target, file, advance):
                target.unlink()
                raise RegistryError(f"{target}: {_blame(source, file)}")
        fsync(target)

    def _arrived(self, source: Path, target: Path, file: File, advance: Advance) -> bool:
        """Whether the target holds the file after what was missing of it was copied.

        What an earlier call left is trusted for nothing: it is hashed with the rest. Only a file that is too short is
        written to, because one of full size may be another release's as well.
        """
        done = target.stat().st_size if target.is_file() else 0
        advance(min(done, file.size_bytes))
        if done < file.size_bytes:
            _copy(source, target, done, advance)
        return self.holds(target.relative_to(self.root).as_posix(), file)

    def holds(self, name: str, file: File, source: Path | None = None) -> bool:
        target = self.root / name
        return target.is_file() and target.stat().st_size == file.size_bytes and sha256_file(target) == file.sha256

    def piece(self, name: str, start: int, size_bytes: int) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read(size_bytes)

    def settle(self, digest: str, record: bytes) -> None:
        incoming, final = self.root / self.incoming(digest), self.root / RELEASES / digest
        (incoming / RECORD).write_bytes(record)
        for place in [*(p for p in incoming.rglob("*") if p.is_dir()), incoming / RECORD, incoming]:
            fsync(place)
        os.rename(incoming, final)
        fsync(final.parent)

    def pointer(self) -> Pointer:
        link = self.root / CURRENT
        if link.exists() and not link.is_symlink():
            raise RegistryError(f"{link}: is no link, so it is not ours to replace; move it away")
        if not link.is_symlink():
            return Pointer(None, ())
        return with_history(Path(os.readlink(link)).name, self.read(HISTORY))

    def point(self, pointer: Pointer) -> None:
        """The link first: a history that is late is mended by the next reader, a link that is late is not."""
        link = self.root / CURRENT
        fresh = link.with_name(f".{CURRENT}.incoming-{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(f"{RELEASES}/{pointer.digest}")
        os.replace(fresh, link)
        fsync(self.root)
        said = self.root / f".{HISTORY}.incoming-{os.getpid()}"
        said.write_text(history_json(pointer), "utf8")
        os.replace(said, self.root / HISTORY)

    def remove(self, folder: str) -> None:
        """Out of sight first, so that no reader finds half of it."""
        top = self.root / folder
        doomed = top.with_name(f"{INCOMING}removed-{top.name.removeprefix(INCOMING)}")
        if top != doomed:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(top, doomed)
        shutil.rmtree(doomed)

    def free_bytes(self) -> int | None:
        place = self.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def alone(self) -> AbstractContextManager[None]:
        """One exporter of this machine at a time writes here."""
        self.root.mkdir(parents=True, exist_ok=True)
        return held(self.root)


def with_history(digest: str, said: bytes | None) -> Pointer:
    """The pointer with what was current before it, from a history that may be a step behind or a step ahead."""
    try:
        history = [str(entry) for entry in json.loads(said)] if said else []
    except (ValueError, TypeError):
        history = []  # it was cut short, and only rollback is the poorer for it
    return Pointer(digest, tuple(history[: history.index(digest)] if digest in history else history))


def history_json(pointer: Pointer) -> str:
    return json.dumps([*pointer.before, pointer.digest]) + "\n"


def _copy(source: Path, target: Path, start: int, advance: Advance) -> None:
    """Appends what is missing; the kernel copies, so no byte passes through this process."""
    with source.open("rb") as read, target.open("r+b" if target.exists() else "wb") as write:
        offset = write.seek(start)
        while sent := os.sendfile(write.fileno(), read.fileno(), offset, PIECE_BYTES):
            offset += sent
            advance(sent)


def _blame(source: Path, file: File) -> str:
    if sha256_file(source) == file.sha256:
        return "arrived altered twice; look at the disk there"
    return f"{source} was altered since it was sealed; make the artifact again (dvc repro)"
