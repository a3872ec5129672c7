"""A running LMDeploy or llama.cpp: started on an artifact, watched until it answers, told to end, quoted when it dies.

The server's own words go through to ours as they come; the last of them are kept, for the line that says why it died.
"""

import errno
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from serving.client import Client
from serving.errors import ServingError
from serving.profile import backend
from serving.shape import Shape

LAUNCHER = Path(__file__).with_name("launch_lmdeploy.py")
INTERPRETER = "LMDEPLOY_PYTHON"
LOOPBACK = "127.0.0.1"
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
PORT = 23333
LAST_PORT = 65535
MISREAD = ((5, 0), (5, 21))  # transformers whose torchvision processors believe LMDeploy that channels come last
KEPT_LINES = 60
GRACE_S = 30.0  # for a server that was told to end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TELLING = re.compile(r"\b(\w*Error|Exception|Check failed|FATAL|Aborted|out of memory|error loading model)\b")


def interpreter() -> str:
    """The Python that has LMDeploy: $LMDEPLOY_PYTHON, this one, or the one beside `lmdeploy` on the PATH."""
    if given := os.environ.get(INTERPRETER):
        return given
    if importlib.util.find_spec("lmdeploy"):
        return sys.executable
    program = shutil.which("lmdeploy")
    if program and (beside := Path(program).resolve().with_name("python")).exists():
        return str(beside)
    remedy = f"pip install 'turbopress[lmdeploy]', or set {INTERPRETER} to a Python that has it"
    raise ServingError(f"lmdeploy: not found; {remedy}")


def require_right_way_up(python: str, shape: Shape) -> None:
    """Refuses an environment whose transformers fails at each image that LMDeploy's PyTorch engine shows a model."""
    if not shape.sees_images or backend(shape) != "pytorch":
        return
    told = "from importlib.metadata import version; print(version('transformers'))"
    done = subprocess.run([python, "-c", told], capture_output=True, text=True, check=False)
    found = re.match(r"(\d+)\.(\d+)", done.stdout)  # nothing, where there is none: LMDeploy itself says so then
    if found and MISREAD[0] <= (int(found[1]), int(found[2])) < MISREAD[1]:
        version = done.stdout.strip()
        raise ServingError(
            f"{python}: transformers {version} reads the images that LMDeploy 0.18 shows a LLaVA with their axes "
            "mixed up, and fails; pip install 'transformers>=5.21'"
        )


def require_free(host: str, port: int) -> None:
    """Refuses a port that somebody listens on, and a host that is none of this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            told = getattr(error, "strerror", None) or error
            if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
                remedy = f"choose another --host: an address of this machine, as {LOOPBACK}"
                raise ServingError(f"--host {host}: {told}; {remedy}") from None
            raise ServingError(f"{host}:{port}: {told}; choose another --port, or end who holds it") from None


def reachable(host: str, port: int) -> str:
    """The address by which this machine reaches a server that listens there."""
    return f"http://{LOOPBACK if host in ANYWHERE else host}:{port}"


class Server:
    """A server's process. `wait_until_ready` and `wait` are called by whoever started it."""

    def __init__(
        self, command: list[str], address: str, echo: IO[str] | None = None, *, engine: str = "lmdeploy"
    ) -> None:
        self.client = Client(address)
        self._engine = engine
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        self._echo = echo
        self._told_to_end = False
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we pass it on
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self, timeout_s: float) -> bool:
        """True once the server is healthy, False where it was told to end before; raises with its last words if it
        dies of itself, or takes too long.
        """
        end = time.monotonic() + timeout_s
        while not self.client.is_healthy():
            has_ended = self._process.poll() is not None
            if self._told_to_end:  # asked for last: the signal may have come while the server was asked
                return False
            if has_ended:
                raise ServingError(self._obituary("before it answered"))
            if time.monotonic() > end:
                self.end()
                late = f"no answer in {timeout_s:.0f} s; raise --timeout; last: {self._words()}"
                raise ServingError(f"{self._engine}: {late}")
            time.sleep(0.2)
        return not self._told_to_end

    def wait(self) -> None:
        """Returns when the server has ended because it was told to; raises with its last words if it died."""
        self._process.wait()
        self._reader.join(5)
        if not self._told_to_end:
            raise ServingError(self._obituary("while it served"))

    def send(self, number: int) -> None:
        """Passes a signal on."""
        self._told_to_end = True
        if self._process.poll() is None:
            self._process.send_signal(number)
            threading.Thread(target=self._end_after_grace, daemon=True).start()

    def end(self) -> None:
        """The server has ended, by force after a while."""
        self.send(signal.SIGTERM)
        self._end_after_grace()

    def _end_after_grace(self) -> None:
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._last.append(line.rstrip())
                if self._echo is not None:
                    self._echo.write(line)
                    self._echo.flush()

    def _obituary(self, when: str) -> str:
        self._reader.join(5)
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self._engine}: {how} {when}; its last words: {self._words()}"

    def _words(self) -> str:
        """The last line that names an error, or the last line."""
        lines = [line for line in self._last if line.strip()]
        telling = [line for line in lines if TELLING.search(line)]
        return (telling or lines or ["none"])[-1].strip()


@contextmanager
def forwarding(server: Server) -> Iterator[None]:
    """Signals that end us go to the server, for as long as this lasts."""

    def forward(number: int, frame: FrameType | None) -> None:
        server.send(number)

    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
    for number in SIGNALS:
        before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lmdeploy_command(arguments: list[str]) -> list[str]:
    """The program that runs LMDeploy's command line with these arguments."""
    return [interpreter(), str(LAUNCHER), *arguments]
