"""A switch that is not over until the server answers, and that is taken back if it does not."""

import http.client
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from registry.errors import RegistryError
from registry.ship.place import Place
from registry.ship.verbs import Exported

EVERY_S = 0.5
ANSWERS_WITHIN_S = 5.0


@dataclass(frozen=True)
class Server:
    """How to make a server take the current release, and where it says that it is well."""

    restart: tuple[str, ...]  # a command that returns when the old server is gone; empty where it notices by itself
    health_url: str | None
    wait_s: float

    def fault(self) -> str | None:
        """What is wrong with the server after a restart; None when it answers."""
        if self.restart:
            try:
                done = subprocess.run(self.restart, capture_output=True, text=True, timeout=self.wait_s, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{self.restart[0]}: {error}"
            if done.returncode != 0:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                return f"{' '.join(self.restart)}: exit status {done.returncode}{': ' + last[0] if last else ''}"
        return _ill(self.health_url, self.wait_s) if self.health_url else None


def switch_safely(place: Place, switch: Callable[[], Exported], server: Server) -> Exported:
    """The switch, when the server is well after it; else the place and the server are as they were, and it is said."""
    before = place.pointer()
    done = switch()
    if not done.moved or (fault := server.fault()) is None:
        return done
    if before.digest is None:
        raise RegistryError(f"{place.url}: {fault}; there is no earlier release to go back to, so it stays current")
    with place.alone():
        place.point(before)
    still = server.fault()
    told = "which is not well either: " + still if still else "which answers"
    raise RegistryError(f"{place.url}: {done.digest[:12]}: {fault}; went back to {before.digest[:12]}, {told}")


def _ill(url: str, wait_s: float) -> str | None:
    """Why the server does not say that it is well within the time; None once it does."""
    last, end = "no answer", time.monotonic() + wait_s
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=ANSWERS_WITHIN_S) as answer:  # noqa: S310 - a person's own address
                if answer.status == http.client.OK:
                    return None
                last = f"status {answer.status}"
        except urllib.error.HTTPError as error:
            last = f"status {error.code}"
        except (OSError, http.client.HTTPException) as error:
            last = str(getattr(error, "reason", error))
        time.sleep(EVERY_S)
    return f"{url} did not answer within {wait_s:g} s ({last})"
