"""Artifacts to send, and the servers of `ship_servers` to send them to, one of each kind a module."""

import time

import pytest
from fake_artifacts import fake_artifact
from ship_servers import s3_environment, start_s3, start_sshd, stop

from registry.ship.place import open_place


@pytest.fixture
def sent(tmp_path):
    fake_artifact(tmp_path / "models" / "awq-w4")
    return tmp_path / "models" / "awq-w4"


@pytest.fixture
def other(tmp_path):
    fake_artifact(tmp_path / "models" / "other", "other")
    return tmp_path / "models" / "other"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    server, process = start_sshd(tmp_path_factory.mktemp("ssh"))
    yield server
    stop(process)


@pytest.fixture(scope="module")
def s3_port(tmp_path_factory):
    """The port of a server that speaks S3."""
    port, process = start_s3(tmp_path_factory.mktemp("s3"))
    yield port
    stop(process)


@pytest.fixture
def as_ssh_user(sshd, monkeypatch):
    monkeypatch.setenv("HOME", str(sshd.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return sshd


@pytest.fixture
def bucket(s3_port, monkeypatch):
    """A fresh bucket's name, with the keys to it in the environment."""
    import boto3

    for name, value in s3_environment(s3_port).items():
        monkeypatch.setenv(name, value)
    name = f"tests-{time.time_ns()}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture(params=["folder", "sftp", "s3"])
def place(request, tmp_path):
    """The same place however it is reached."""
    if request.param == "folder":
        return open_place(str(tmp_path / "server"))
    if request.param == "sftp":
        server = request.getfixturevalue("as_ssh_user")
        return open_place(f"sftp://{server.authority}{tmp_path}/server")
    return open_place(f"s3://{request.getfixturevalue('bucket')}/models")
