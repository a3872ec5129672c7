"""A place behind an OpenSSH server, through fsspec's file system for it.

Who the server is, is known from ~/.ssh/known_hosts, and ~/.ssh/config is followed as ssh follows it: an unknown host
and a changed key are refused. A file is written block by block, each acknowledged before the next, so that a killed
upload goes on with the last block; it is hashed by the far end's sha256sum, or read back where only SFTP is allowed.
"""

import hashlib
import posixpath
import shlex
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from registry.errors import RegistryError
from registry.manifest import File
from registry.ship.folder import CURRENT, HISTORY, INCOMING, history_json, with_history
from registry.ship.place import RELEASES, Advance, Pointer
from registry.ship.release import RECORD
from registry.ship.sftp_sessions import Sessions, errors, size, write

BLOCK_BYTES = 8 << 20

T = TypeVar("T")


class SftpPlace:
    """Releases under a folder of another machine."""

    is_far = True

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.url = address.rstrip("/")
        self.root = unquote(parts.path).rstrip("/")
        if not parts.hostname or not self.root:
            raise RegistryError(f"{address}: names no folder of a host; write sftp://HOST/FOLDER")
        self._sessions = Sessions(address, parts.hostname, parts.port, parts.username)
        self._has_shell = True

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, name: str) -> bytes | None:
        async def reads(sftp: Any) -> bytes | None:
            with suppress(errors().SFTPNoSuchFile, errors().SFTPNoSuchPath):
                async with sftp.open(self._at(name), "rb") as file:
                    content: bytes = await file.read()
                    return content
            return None

        return self._run(reads)

    def digests(self) -> list[str]:
        return [name for name in self._listed() if not name.startswith(".")]

    def unfinished(self) -> list[str]:
        return [f"{RELEASES}/{name}" for name in self._listed() if name.startswith(INCOMING)]

    def _listed(self) -> list[str]:
        async def lists(sftp: Any) -> list[str]:
            with suppress(errors().SFTPNoSuchFile, errors().SFTPNoSuchPath):
                return sorted(name for name in await sftp.listdir(self._at(RELEASES)) if name not in (".", ".."))
            return []

        return self._run(lists)

    def sizes(self, folder: str) -> dict[str, int]:
        async def walks(sftp: Any, at: str = "") -> dict[str, int]:
            found: dict[str, int] = {}
            with suppress(errors().SFTPNoSuchFile, errors().SFTPNoSuchPath):
                for entry in await sftp.readdir(posixpath.join(self._at(folder), at)):
                    name = posixpath.join(at, entry.filename)
                    if entry.filename in (".", ".."):
                        continue
                    if entry.attrs.type == errors().FILEXFER_TYPE_SYMLINK:
                        told = f"{self.url}/{folder}/{name}: is a symbolic link, and a release has none"
                        raise RegistryError(f"{told}; remove that release")
                    is_folder = entry.attrs.type == errors().FILEXFER_TYPE_DIRECTORY
                    found |= await walks(sftp, name) if is_folder else {name: entry.attrs.size}
            return found

        return self._run(walks)

    def incoming(self, digest: str) -> str:
        return f"{RELEASES}/{INCOMING}{digest}"

    def take(self, name: str, old: str) -> bool:
        async def links(sftp: Any) -> bool:
            await sftp.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
            try:
                await sftp.link(self._at(old), self._at(name))
            except errors().SFTPError:  # no such extension, or another filesystem: the file is sent then
                return False
            return True

        return self._run(links)

    def send(self, source: Path, name: str, file: File, advance: Advance) -> None:
        for _ in range(2):  # what an earlier call left may be damaged; what this one sends whole may not
            begun = self._run(lambda sftp: self._append(sftp, source, name, file, advance))
            if self.holds(name, file):
                return
            advance(-file.size_bytes)
            self._run(lambda sftp: sftp.remove(self._at(name)))
            if begun == 0:
                break
        raise RegistryError(f"{self.url}/{name}: arrived altered; look at the disk there")

    async def _append(self, sftp: Any, source: Path, name: str, file: File, advance: Advance) -> int:
        """Sends what is missing and says from where on. Only a file that is too short is written to."""
        path = self._at(name)
        await sftp.makedirs(posixpath.dirname(path), exist_ok=True)
        done = await size(sftp, path)
        # Requests within a block may overtake each other, so the last block that was begun is sent again.
        start = done if done >= file.size_bytes else max(0, -(-done // BLOCK_BYTES) - 1) * BLOCK_BYTES
        advance(min(start, file.size_bytes))
        if done < file.size_bytes or file.size_bytes == 0:
            mode = errors().FXF_WRITE | errors().FXF_CREAT
            async with sftp.open(path, mode, encoding=None) as remote:
                with source.open("rb") as local:
                    local.seek(start)
                    offset = start
                    while block := local.read(BLOCK_BYTES):
                        await remote.write(block, offset)
                        offset += len(block)
                        advance(len(block))
                with suppress(errors().SFTPOpUnsupported):
                    await remote.fsync()
        return start

    def holds(self, name: str, file: File, source: Path | None = None) -> bool:
        async def hashes(sftp: Any) -> bool:
            if await size(sftp, self._at(name)) != file.size_bytes:
                return False
            said = await self._said_by_shell(name) or await self._hash_of_what_comes_back(sftp, name)
            return said == file.sha256

        return self._run(hashes)

    async def _said_by_shell(self, name: str) -> str | None:
        """The far end's own sha256 of a file; None where it runs no commands for us."""
        if not self._has_shell:
            return None
        try:
            done = await self._sessions.shell(f"sha256sum -- {shlex.quote(self._at(name))}")
        except errors().ChannelOpenError:
            done = None
        digest = str(done.stdout).split(" ")[0].removeprefix("\\") if done and done.exit_status == 0 else ""
        self._has_shell = len(digest) == 64
        return digest if self._has_shell else None

    async def _hash_of_what_comes_back(self, sftp: Any, name: str) -> str:
        digest = hashlib.sha256()
        async with sftp.open(self._at(name), "rb") as file:
            while block := await file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def piece(self, name: str, start: int, size_bytes: int) -> bytes:
        async def reads(sftp: Any) -> bytes:
            async with sftp.open(self._at(name), "rb") as file:
                content: bytes = await file.read(size_bytes, start)
                return content

        return self._run(reads)

    def settle(self, digest: str, record: bytes) -> None:
        async def settles(sftp: Any) -> None:
            incoming, final = self._at(self.incoming(digest)), self._at(f"{RELEASES}/{digest}")
            await write(sftp, f"{incoming}/{RECORD}", record)
            await sftp.rename(incoming, final)

        self._run(settles)

    def pointer(self) -> Pointer:
        async def reads(sftp: Any) -> str | None:
            path = self._at(CURRENT)
            with suppress(errors().SFTPNoSuchFile, errors().SFTPNoSuchPath):
                if not await sftp.islink(path) and await sftp.lexists(path):
                    raise RegistryError(f"{self.url}/{CURRENT}: is no link, so it is not ours to replace; move it away")
                target: str = await sftp.readlink(path)
                return posixpath.basename(target)
            return None

        digest = self._run(reads)
        return with_history(digest, self.read(HISTORY)) if digest else Pointer(None, ())

    def point(self, pointer: Pointer) -> None:
        """The link first: a history that is late is mended by the next reader, a link that is late is not."""

        async def points(sftp: Any) -> None:
            fresh, link = self._at(f".{CURRENT}.incoming-{pointer.digest}"), self._at(CURRENT)
            with suppress(errors().SFTPNoSuchFile):
                await sftp.remove(fresh)
            await sftp.symlink(f"{RELEASES}/{pointer.digest}", fresh)
            await sftp.posix_rename(fresh, link)
            await write(sftp, self._at(HISTORY), history_json(pointer).encode())

        self._run(points)

    def remove(self, folder: str) -> None:
        async def removes(sftp: Any) -> None:
            top = self._at(folder)
            name = posixpath.basename(top).removeprefix(INCOMING)
            doomed = posixpath.join(posixpath.dirname(top), f"{INCOMING}removed-{name}")
            if top != doomed:
                await sftp.rmtree(doomed, ignore_errors=True)
                await sftp.rename(top, doomed)
            await sftp.rmtree(doomed)

        self._run(removes)

    def free_bytes(self) -> int | None:
        async def asks(sftp: Any) -> int | None:
            place = self.root
            while place != "/" and not await sftp.exists(place):
                place = posixpath.dirname(place)
            with suppress(errors().SFTPError):
                room = await sftp.statvfs(place)
                free: int = room.bavail * room.frsize
                return free
            return None

        return self._run(asks)

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        return self._sessions.run(work)
