"""The connection to an OpenSSH server: a few SFTP sessions that work side by side, and a shell where there is one."""

import asyncio
import posixpath
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from registry.ship.place import needs

SESSIONS = 4  # at once; OpenSSH allows 10 on a connection
CONNECT_S = 20
ALIVE_S = 15  # between questions whether the server is still there; four without an answer end it

T = TypeVar("T")


class Sessions:
    """Hands a session to each piece of work, and takes it back."""

    def __init__(self, address: str, host: str, port: int | None, user: str | None) -> None:
        try:
            from sshfs import SSHFileSystem  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise needs(address, "sftp", error) from error
        named = {name: value for name, value in {"port": port, "username": user}.items() if value is not None}
        # Of known hosts its own default is to ask nobody; () is what ssh itself would know.
        self._system = SSHFileSystem(
            host, known_hosts=(), connect_timeout=CONNECT_S, keepalive_interval=ALIVE_S, keepalive_count_max=4,
            skip_instance_cache=True, **named,
        )  # fmt: skip
        self._free: list[Any] = []
        self._slots: asyncio.Semaphore | None = None

    def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Does some work on an SFTP session of its own, and waits for it."""
        from fsspec.asyn import sync  # noqa: PLC0415 - with the extra

        done: T = sync(self._system.loop, self._with_session, work)
        return done

    async def shell(self, command: str) -> Any:
        """What a command on the far end did."""
        return await self._system.client.run(command)

    async def _with_session(self, work: Callable[[Any], Awaitable[T]]) -> T:
        self._slots = self._slots or asyncio.Semaphore(SESSIONS)
        async with self._slots:
            session = self._free.pop() if self._free else await self._system.client.start_sftp_client()
            try:
                return await work(session)
            finally:
                self._free.append(session)


def errors() -> Any:
    """asyncssh with its many error types, which only the extra has."""
    import asyncssh.sftp  # noqa: PLC0415 - an extra

    return asyncssh.sftp


async def size(sftp: Any, path: str) -> int:
    try:
        found: int = (await sftp.stat(path)).size
    except (errors().SFTPNoSuchFile, errors().SFTPNoSuchPath):
        return 0
    return found


async def write(sftp: Any, path: str, content: bytes) -> None:
    """A small file in one step: a reader sees the old or the new."""
    fresh = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.incoming")
    async with sftp.open(fresh, "wb") as file:
        await file.write(content)
    await sftp.posix_rename(fresh, path)
