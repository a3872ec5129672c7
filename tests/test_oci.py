"""An artifact pushed to a real OCI registry comes back byte for byte, in ModelPack's layout."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import time

import pytest
import requests
from fake_artifacts import fake_artifact
from ship_servers import free_port, stop, wait_for

from registry.errors import RegistryError
from registry.manifest import verify
from registry.oci import IMAGE, push

PROGRAM = shutil.which("docker-registry") or shutil.which("registry")
PASSWORD = "only-tests"


def start_registry(home, more=""):
    if PROGRAM is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    port = free_port()
    home.mkdir(exist_ok=True)
    (home / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {home}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{more}"
    )
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(home / "config.yml")], stdout=log, stderr=log)
    wait_for(port, process, home / "log")
    return f"127.0.0.1:{port}", process


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    address, process = start_registry(tmp_path_factory.mktemp("registry"))
    yield address
    stop(process)


@pytest.fixture
def artifact(tmp_path):
    fake_artifact(tmp_path / "awq-w4", f"weights {time.time_ns()}")
    (tmp_path / "docker").mkdir()
    return tmp_path / "awq-w4"


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def pulled(host, name, tag, to):
    """What another client of the registry gets: the manifest, and a folder of its layers."""
    url = f"http://{host}/v2/{name}"
    manifest = requests.get(f"{url}/manifests/{tag}", headers={"Accept": IMAGE}, timeout=10)
    said = manifest.json()
    for layer in said["layers"]:
        content = requests.get(f"{url}/blobs/{layer['digest']}", timeout=10).content
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer["digest"]
        place = to / layer["annotations"]["org.cncf.model.filepath"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return said, manifest.headers["Docker-Content-Digest"]


def test_what_was_pushed_comes_back_as_the_same_artifact(host, artifact, tmp_path):
    done = push(artifact, f"oci://{host}/team/awq:v1")
    said, digest = pulled(host, "team/awq", "v1", tmp_path / "back")
    assert digest == done.digest
    assert verify(tmp_path / "back") == verify(artifact)
    assert said["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert said["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in said["layers"]}
    assert kinds["model.safetensors"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["tokenizer/tokenizer.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    config = requests.get(f"http://{host}/v2/team/awq/blobs/{said['config']['digest']}", timeout=10).json()
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in said["layers"]]


def test_layers_that_are_there_are_not_sent_again(host, artifact, tmp_path):
    first = push(artifact, f"oci://{host}/team/again:v1")
    again = push(artifact, f"oci://{host}/team/again:v2")
    assert again.digest == first.digest
    assert again.sent_bytes < 2000 < first.sent_bytes + 1500  # the manifest alone
    fake_artifact(tmp_path / "other", f"other {time.time_ns()}")
    other = push(tmp_path / "other", f"oci://{host}/team/again:v3")
    assert other.sent_bytes < first.sent_bytes


def test_a_tampered_artifact_is_not_pushed(host, artifact):
    (artifact / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"config.json has 2 bytes"):
        push(artifact, f"oci://{host}/team/tampered:v1")
    assert requests.get(f"http://{host}/v2/team/tampered/tags/list", timeout=10).status_code == 404


@pytest.mark.parametrize("address", ["oci://host/name", "oci://host:v1", "host/name:v1", "oci://host/NAME:v1"])
def test_what_names_no_tag_is_refused(artifact, address):
    with pytest.raises(RegistryError, match=r"names no tag of an OCI registry; write oci://HOST/NAME:TAG"):
        push(artifact, address)


def test_a_registry_that_is_down_is_one_line(artifact):
    with pytest.raises(RegistryError, match=r"oci://127.0.0.1:1/a:b: refused: ") as refused:
        push(artifact, "oci://127.0.0.1:1/a:b")
    assert len(str(refused.value).splitlines()) == 1


@pytest.fixture
def locked(tmp_path):
    """A registry that knows one user."""
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd is not installed: apt-get install apache2-utils")
    made = subprocess.run(["htpasswd", "-Bbn", "me", PASSWORD], capture_output=True, text=True, check=True).stdout
    (tmp_path / "users").write_text(made)
    host, process = start_registry(
        tmp_path / "locked", f"auth: {{htpasswd: {{realm: tests, path: {tmp_path}/users}}}}\n"
    )
    yield host
    stop(process)


def test_a_registry_that_wants_a_password_is_shown_the_one_that_docker_keeps(locked, artifact, tmp_path):
    for auths in ({}, {locked: {"auth": base64.b64encode(b"me:wrong").decode()}}):
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": auths}))
        with pytest.raises(RegistryError, match=r"was answered 401") as refused:
            push(artifact, f"oci://{locked}/team/awq:v1")
        assert "wrong" not in str(refused.value)
    kept = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {locked: {"auth": kept}}}))
    assert push(artifact, f"oci://{locked}/team/awq:v1").sent_bytes > 700


def helper(folder, answer, status=0):
    """A credential helper as docker calls it: `get`, the host on its input."""
    folder.mkdir(exist_ok=True)
    program = folder / "docker-credential-tests"
    program.write_text(f"#!/bin/sh\n[ $1 = get ] && cat > {folder}/asked && printf '%s' '{answer}'\nexit {status}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("where", ["credHelpers", "credsStore"])
def test_docker_s_credential_helper_is_asked_for_the_host(locked, artifact, tmp_path, monkeypatch, where):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    helper(tmp_path / "bin", json.dumps({"ServerURL": locked, "Username": "me", "Secret": PASSWORD}))
    said = {where: {locked: "tests"} if where == "credHelpers" else "tests", "auths": {locked: {}}}
    (tmp_path / "docker" / "config.json").write_text(json.dumps(said))
    assert push(artifact, f"oci://{locked}/team/awq:v1").sent_bytes > 700
    assert (tmp_path / "bin" / "asked").read_text() == locked


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ("credentials not found in native keychain", 1, "was answered 401"),
        ("the secret is hunter2", 1, "docker-credential-tests: ended with status 1; run: docker login"),
        ("hunter2", 0, "docker-credential-tests: did not answer as docker asks it; run: docker login"),
        ('{"Username": "<token>", "Secret": "hunter2"}', 0, "docker-credential-tests: has an identity token"),
        (None, 0, "docker-credential-tests: is not installed, but .*config.json names it"),
    ],
)
def test_a_helper_that_does_not_help_is_one_line_without_its_secret(
    locked, artifact, tmp_path, monkeypatch, answer, status, message
):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    if answer is not None:
        helper(tmp_path / "bin", answer, status)
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"credsStore": "tests"}))
    with pytest.raises(RegistryError, match=message) as refused:
        push(artifact, f"oci://{locked}/team/awq:v1")
    assert len(str(refused.value).splitlines()) == 1
    assert "hunter2" not in str(refused.value)
