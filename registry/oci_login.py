"""Who we are to an OCI registry: what `docker login` has kept, shown as the registry asks for it."""

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import requests

from registry.errors import RegistryError

CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
HELPER = re.compile(r"[\w.-]+")  # a part of a program's name
NOT_FOUND = "credentials not found"  # how every helper says that it has none
IDENTITY_TOKEN = "<token>"  # noqa: S105 - what stands for a user where the secret is no password
WAIT_S = 60


class Login:
    """Credentials of one host. They are sent to it, and to the place that it sends us to for a token."""

    def __init__(self, host: str) -> None:
        self._kept = _kept(host)
        self._header: str | None = None

    def with_it(self, said: dict[str, Any]) -> dict[str, Any]:
        """A request's arguments with the authorization that the registry has asked for."""
        return (
            said
            if self._header is None
            else said | {"headers": {**said.get("headers", {}), "Authorization": self._header}}
        )

    def answer(self, refusal: requests.Response, session: requests.Session) -> bool:
        """Whether there is now something to show that was not shown before."""
        kind, _, told = refusal.headers.get("WWW-Authenticate", "").partition(" ")
        before = self._header
        if kind.lower() == "basic" and self._kept:
            self._header = f"Basic {self._kept}"
        elif kind.lower() == "bearer":
            self._header = self._token(dict(CHALLENGE.findall(told)), session)
        return self._header is not None and self._header != before

    def _token(self, asked: dict[str, str], session: requests.Session) -> str | None:
        realm = asked.pop("realm", "")
        headers = {"Authorization": f"Basic {self._kept}"} if self._kept else {}
        answer = session.get(realm, params=asked, headers=headers, timeout=WAIT_S)
        said = answer.json() if answer.ok else {}
        token = said.get("token") or said.get("access_token")
        return f"Bearer {token}" if token else None


def _kept(host: str) -> str | None:
    """base64 of USER:PASSWORD, from docker's credential helper for the host, or as docker keeps it itself."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text("utf8"))
        helper = said.get("credHelpers", {}).get(host) or said.get("credsStore")
        kept: str | None = said.get("auths", {}).get(host, {}).get("auth")
        if kept:
            base64.b64decode(kept, validate=True)
    except (ValueError, AttributeError) as error:
        raise RegistryError(f"{path}: is not docker's configuration ({error}); run: docker login {host}") from None
    return (_told_by_helper(str(helper), host, path) if helper else None) or kept


def _told_by_helper(helper: str, host: str, path: Path) -> str | None:
    """The same from `docker-credential-HELPER get`, docker's own protocol; None where it knows no such host."""
    if not HELPER.fullmatch(helper):
        raise RegistryError(f"{path}: {helper!r} is no name of a credential helper; run: docker login {host}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=host, capture_output=True, text=True, check=False, timeout=WAIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "is not installed" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise RegistryError(f"{program}: {reason}, but {path} names it; install it, or docker login {host}") from None
    if done.returncode != 0:  # its words may hold a secret, and are not repeated
        if NOT_FOUND in done.stdout + done.stderr:
            return None
        raise RegistryError(f"{program}: ended with status {done.returncode}; run: docker login {host}")
    try:
        said = json.loads(done.stdout)
        user, secret = said["Username"], said["Secret"]
    except (ValueError, KeyError, TypeError):
        raise RegistryError(f"{program}: did not answer as docker asks it; run: docker login {host}") from None
    if user == IDENTITY_TOKEN:
        raise RegistryError(f"{program}: has an identity token for {host}; log in with a user and a password or token")
    return base64.b64encode(f"{user}:{secret}".encode()).decode()
