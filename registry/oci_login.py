"""Who we are to an OCI registry: what `docker login` has kept, shown as the registry asks for it."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import requests

from registry.errors import RegistryError

CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
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
    """base64 of USER:PASSWORD as docker keeps it; a credential helper of its own is not asked."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    if not path.is_file():
        return None
    try:
        entry = json.loads(path.read_text("utf8")).get("auths", {}).get(host, {})
        kept = entry.get("auth")
        if kept:
            base64.b64decode(kept, validate=True)
    except (ValueError, AttributeError) as error:
        raise RegistryError(f"{path}: is not docker's configuration ({error}); run: docker login {host}") from None
    return kept
