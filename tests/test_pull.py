"""Pulling a release to a folder, from a folder, a real OpenSSH server and a real S3 server."""

import os

import pytest
from fake_artifacts import fake_artifact

from registry.errors import RegistryError
from registry.manifest import verify
from registry.ship import pull as pull_module
from registry.ship.place import RELEASES, open_place
from registry.ship.pull import pull
from registry.ship.upkeep import verify_releases
from registry.ship.verbs import export

pytest_plugins = ["ship_fixtures"]


@pytest.fixture(params=["folder", "sftp", "s3"])
def far(request, tmp_path):
    """The same place however it is reached, and its address."""
    if request.param == "folder":
        return open_place(str(tmp_path / "server"))
    if request.param == "sftp":
        server = request.getfixturevalue("as_ssh_user")
        return open_place(f"sftp://{server.authority}{tmp_path}/server")
    return open_place(f"s3://{request.getfixturevalue('bucket')}/models")


@pytest.fixture
def here(tmp_path):
    return open_place(str(tmp_path / "here"))


def made(folder, text):
    fake_artifact(folder, text)
    return folder


def test_the_current_release_is_current_here_too_byte_for_byte(far, here, tmp_path, monkeypatch):
    monkeypatch.setattr(pull_module, "PIECE_BYTES", 300)  # several pieces a file
    artifact = made(tmp_path / "models" / "a", "weights" * 50)
    sent = export(far, artifact, of="a")
    done = pull(far, here)
    assert (done.digest, done.before, done.sent_bytes) == (sent.digest, None, sent.sent_bytes)
    assert verify(here.root / "current") == verify(artifact)
    (listed,) = verify_releases(here)
    assert listed.is_current
    again = pull(far, here)
    assert (again.sent_bytes, again.before) == (0, sent.digest)


def test_what_another_release_here_holds_is_not_fetched_and_an_older_one_can_be_named(far, here, tmp_path):
    first = export(far, made(tmp_path / "models" / "a", "one"), of="a")
    pull(far, here)
    second = export(far, made(tmp_path / "models" / "b", "two"), of="b")
    done = pull(far, here)
    assert done.digest == second.digest
    assert 0 < done.reused_bytes < done.reused_bytes + done.sent_bytes
    assert pull(far, here, release=first.digest[:8]).digest == first.digest
    assert os.readlink(here.root / "current") == f"{RELEASES}/{first.digest}"


def test_a_pull_that_was_cut_short_goes_on_and_damage_is_fetched_again(far, here, tmp_path):
    artifact = made(tmp_path / "models" / "a", "weights")
    digest = export(far, artifact, of="a").digest
    begun = here.root / here.incoming(digest) / "model.safetensors"
    begun.parent.mkdir(parents=True)
    begun.write_bytes((artifact / "model.safetensors").read_bytes()[:100])
    assert pull(far, here).sent_bytes < sum(file.size_bytes for file in verify_releases(here)[0].record.files.values())
    assert verify(here.root / "current").digest == digest
    other = open_place(str(tmp_path / "elsewhere"))
    damaged = other.root / other.incoming(digest) / "model.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"?" * 100)
    pull(far, other)
    assert verify(other.root / "current").digest == digest


def test_an_altered_release_is_refused_and_nothing_here_changes(here, tmp_path):
    far = open_place(str(tmp_path / "server"))
    digest = export(far, made(tmp_path / "models" / "a", "weights"), of="a").digest
    weights = far.root / RELEASES / digest / "model.safetensors"
    weights.write_bytes(b"?" + weights.read_bytes()[1:])
    with pytest.raises(RegistryError, match=r"model\.safetensors: altered; export it there again"):
        pull(far, here)
    assert here.digests() == []
    assert not (here.root / "current").exists()


def test_the_command_pulls_and_refuses_in_one_line(tmp_path, turbopress):
    far = open_place(str(tmp_path / "server"))
    status, _, error = turbopress("pull", "--from", far.url, "--to", tmp_path / "here")
    assert (status, error) == (
        1, f"turbopress: {far.url}: no release is current; export one first (turbopress export)\n",
    )  # fmt: skip
    digest = export(far, made(tmp_path / "models" / "a", "weights"), of="a").digest
    status, out, _ = turbopress("pull", "--from", far.url, "--to", tmp_path / "here")
    assert status == 0
    assert out.startswith(f"{tmp_path}/here/{RELEASES}/{digest}: fetched ")
    status, _, error = turbopress("pull", "--from", far.url, "--to", "s3://bucket/x")
    assert (status, error) == (
        1, "turbopress: --to: s3://bucket/x; choose a folder of this machine (turbopress export sends elsewhere)\n",
    )  # fmt: skip
