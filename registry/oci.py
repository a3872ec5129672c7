"""Pushing an artifact to an OCI registry in CNCF ModelPack's layout: a layer a file, uncompressed, so that layers that
another version shares are neither stored nor sent again.

    config                   application/vnd.cncf.model.config.v1+json
    weights                  application/vnd.cncf.model.weight.v1.raw
    config.json, tokenizer   application/vnd.cncf.model.weight.config.v1.raw
    README.md                application/vnd.cncf.model.doc.v1.raw

The manifest, which makes it visible, is put last. Equal artifacts make equal manifests: no date lies in them.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from registry.errors import RegistryError
from registry.hashing import sha256_file
from registry.manifest import IN_FEW_BITS, MANIFEST, Manifest, verify
from registry.oci_login import Login

IMAGE = "application/vnd.oci.image.manifest.v1+json"
FILEPATH = "org.cncf.model.filepath"
MODEL = "application/vnd.cncf.model."
ADDRESS = re.compile(r"oci://(?P<host>[\w.-]+(?::\d+)?)/(?P<name>[a-z0-9][a-z0-9._/-]*):(?P<tag>[\w][\w.-]{0,127})")
WAIT_S = 60  # for an answer; a body may take as long as it takes
HERE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")  # hosts that docker too speaks to without TLS


@dataclass(frozen=True)
class Pushed:
    """What a registry now holds; `sent_bytes` leaves out the layers that it had."""

    address: str
    digest: str  # of the OCI manifest
    sent_bytes: int

    def __str__(self) -> str:
        return f"{self.address}@{self.digest}: sent {self.sent_bytes:,} bytes"


def push(folder: Path, address: str) -> Pushed:
    """The artifact is at the address, every layer's digest checked by the registry as it arrived."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise RegistryError(f"{address}: names no tag of an OCI registry; write oci://HOST/NAME:TAG")
    manifest = verify(folder)
    scheme = "http" if HERE.fullmatch(parts["host"]) else "https"
    remote = _Remote(f"{scheme}://{parts['host']}/v2/{parts['name']}", Login(parts["host"]), address)
    layers = [_layer(folder, name, manifest) for name in sorted([*manifest.files, MANIFEST])]
    config = _config(parts["name"], manifest, layers)
    sent = sum(remote.send_file(folder / layer["annotations"][FILEPATH], layer) for layer in layers)
    sent += remote.send(config, _digest(config))
    image = _image(config, layers, manifest)
    remote.put_manifest(parts["tag"], image)
    return Pushed(address, _digest(image), sent + len(image))


def _layer(folder: Path, name: str, manifest: Manifest) -> dict[str, Any]:
    """A descriptor; the sealed sha256 of a file is its digest as a layer."""
    path = folder / name
    sealed = manifest.files.get(name)
    sha256, size = (sealed.sha256, sealed.size_bytes) if sealed else (sha256_file(path), path.stat().st_size)
    kind = {".safetensors": "weight", ".md": "doc"}.get(path.suffix, "weight.config")
    return {
        "mediaType": f"{MODEL}{kind}.v1.raw",
        "digest": f"sha256:{sha256}",
        "size": size,
        "annotations": {FILEPATH: name, "org.opencontainers.image.title": name},
    }


def _config(name: str, manifest: Manifest, layers: list[dict[str, Any]]) -> bytes:
    said: dict[str, Any] = {
        "descriptor": {"name": name.rsplit("/", 1)[-1], "family": "internlm2", "revision": manifest.digest},
        "config": {"format": "safetensors", **({"quantization": "awq-int4"} if manifest.kind in IN_FEW_BITS else {})},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }
    return json.dumps(said, sort_keys=True).encode()


def _image(config: bytes, layers: list[dict[str, Any]], manifest: Manifest) -> bytes:
    described = {"mediaType": f"{MODEL}config.v1+json", "digest": _digest(config), "size": len(config)}
    said = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "artifactType": f"{MODEL}manifest.v1+json",
        "config": described,
        "layers": layers,
        "annotations": {"turbopress.artifact": manifest.digest},
    }
    return json.dumps(said, sort_keys=True).encode()


class _Remote:
    """One repository of a registry, over the OCI distribution protocol."""

    def __init__(self, url: str, login: Login, address: str) -> None:
        self._url, self._login, self._address = url, login, address
        self._session = requests.Session()

    def send_file(self, path: Path, layer: dict[str, Any]) -> int:
        """Bytes that went over the wire."""
        if self._has(layer["digest"]):
            return 0
        with path.open("rb") as file:
            self._upload(file, layer["digest"])
        size: int = layer["size"]
        return size

    def send(self, content: bytes, digest: str) -> int:
        if self._has(digest):
            return 0
        self._upload(content, digest)
        return len(content)

    def put_manifest(self, tag: str, content: bytes) -> None:
        self._ask("PUT", f"{self._url}/manifests/{tag}", 201, data=content, headers={"Content-Type": IMAGE})

    def _has(self, digest: str) -> bool:
        return self._ask("HEAD", f"{self._url}/blobs/{digest}", 200, 404).status_code == requests.codes.ok

    def _upload(self, body: Any, digest: str) -> None:
        begun = self._ask("POST", f"{self._url}/blobs/uploads/", 202)
        place = urljoin(f"{self._url}/", begun.headers["Location"])
        joined = "&" if "?" in place else "?"
        headers = {"Content-Type": "application/octet-stream"}
        self._ask("PUT", f"{place}{joined}digest={digest}", 201, data=body, headers=headers)

    def _ask(self, method: str, url: str, *wanted: int, **said: Any) -> requests.Response:
        try:
            answer = self._session.request(method, url, timeout=(WAIT_S, None), **self._login.with_it(said))
            if answer.status_code == requests.codes.unauthorized and self._login.answer(answer, self._session):
                if hasattr(said.get("data"), "seek"):
                    said["data"].seek(0)
                answer = self._session.request(method, url, timeout=(WAIT_S, None), **self._login.with_it(said))
        except requests.RequestException as error:
            reason = " ".join(str(error).split())[:200]
            raise RegistryError(f"{self._address}: refused: {reason}; mend that and run again") from error
        if answer.status_code not in wanted:
            reason = " ".join(answer.text.split())[:200] or answer.reason
            told = f"{self._address}: refused: {method} was answered {answer.status_code}: {reason}"
            raise RegistryError(f"{told}; log in with docker login, or mend that, and run again")
        return answer


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
