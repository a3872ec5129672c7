"""A release never changes, and the link to the current one moves in one step."""

import os
import shutil
import threading

import pytest
from fake_artifacts import fake_artifact, fake_report

from registry.errors import RegistryError
from registry.export import export, release
from registry.manifest import verify
from registry.publish import publish


@pytest.fixture
def artifact(tmp_path):
    fake_artifact(tmp_path / "models" / "awq-w4")
    return tmp_path / "models" / "awq-w4"


def test_a_release_is_a_verified_copy_named_by_its_digest_and_current_points_at_it(artifact, tmp_path):
    sent = release(artifact, tmp_path / "server")
    manifest = verify(artifact)
    assert sent.release == tmp_path / "server" / "releases" / manifest.digest
    assert sent.sent_bytes == manifest.size_bytes
    assert verify(tmp_path / "server" / "current") == manifest
    assert (sent.release / "model.safetensors").stat().st_nlink == 1


def test_a_release_outlives_the_artifact_and_a_move_of_the_whole_tree(artifact, tmp_path):
    digest = verify(artifact).digest
    release(artifact, tmp_path / "server")
    shutil.rmtree(artifact)
    (tmp_path / "server").rename(tmp_path / "mounted")
    assert verify(tmp_path / "mounted" / "current").digest == digest


def test_a_release_that_is_there_is_not_sent_again_and_says_so(artifact, tmp_path):
    first = release(artifact, tmp_path / "server")
    inode = (first.release / "model.safetensors").stat().st_ino
    again = release(artifact, tmp_path / "server")
    assert again.sent_bytes == 0
    assert "was there already" in str(again)
    assert (again.release / "model.safetensors").stat().st_ino == inode


def test_a_tampered_artifact_is_not_exported(artifact, tmp_path):
    (artifact / "model.safetensors").write_bytes(b"poison!" * 100)
    with pytest.raises(RegistryError, match=r"model.safetensors was altered"):
        release(artifact, tmp_path / "server")
    assert not (tmp_path / "server").exists()


def test_a_tampered_release_is_refused_and_current_stays(artifact, tmp_path):
    first = release(artifact, tmp_path / "server")
    fake_artifact(tmp_path / "models" / "other", "other")
    release(tmp_path / "models" / "other", tmp_path / "server")
    (first.release / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=rf"{first.release}: config.json has 2 bytes"):
        release(artifact, tmp_path / "server")
    assert verify(tmp_path / "server" / "current").digest == verify(tmp_path / "models" / "other").digest


def test_a_copy_that_arrives_damaged_is_removed_and_current_stays(artifact, tmp_path, monkeypatch):
    fake_artifact(tmp_path / "models" / "other", "other")
    release(tmp_path / "models" / "other", tmp_path / "server")
    monkeypatch.setattr(shutil, "copyfile", lambda source, to: to.write_bytes(source.read_bytes()[:-1]))
    with pytest.raises(RegistryError, match="expected"):
        release(artifact, tmp_path / "server")
    assert len(list((tmp_path / "server" / "releases").iterdir())) == 1
    assert verify(tmp_path / "server" / "current").digest == verify(tmp_path / "models" / "other").digest


def test_a_reader_never_misses_while_current_moves(artifact, tmp_path):
    other = tmp_path / "models" / "other"
    fake_artifact(other, "other")
    config = tmp_path / "server" / "current" / "config.json"
    release(artifact, tmp_path / "server")
    stop, read = threading.Event(), []

    def reader():
        while not stop.is_set():
            read.append(config.exists())

    thread = threading.Thread(target=reader)
    thread.start()
    for _ in range(50):
        release(other, tmp_path / "server")
        release(artifact, tmp_path / "server")
    stop.set()
    thread.join()
    assert len(read) > 100
    assert all(read)


def test_a_folder_named_current_is_not_replaced(artifact, tmp_path):
    (tmp_path / "server" / "current").mkdir(parents=True)
    with pytest.raises(RegistryError, match=r"current: is no link, so it is not ours to replace"):
        release(artifact, tmp_path / "server")


def test_too_small_a_disk_is_refused_before_anything_is_sent(artifact, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RegistryError, match=r"bytes and the disk has 10; remove old releases"):
        release(artifact, tmp_path / "server")
    assert os.listdir(tmp_path / "server" / "releases") == []


def test_a_version_is_exported_by_its_alias_and_an_address_is_refused(artifact, tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    publish(artifact, fake_report("awq-w4"), root=tmp_path, model="demo", variant="awq-w4")
    sent = export("demo@awq-w4", tmp_path / "server", root=tmp_path)
    assert verify(sent.release) == verify(artifact)
    for address in ("sftp://host/models", "s3://bucket/models", "file:///srv"):
        with pytest.raises(RegistryError, match=f"{address}: is an address, and export writes to folders"):
            export("demo@awq-w4", address, root=tmp_path)
