"""Pulling a release to a folder, from a folder, a real OpenSSH server and a real S3 server."""

import json
import os
import shutil

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


@pytest.fixture
def here(tmp_path):
    return open_place(str(tmp_path / "here"))


def made(folder, text):
    fake_artifact(folder, text)
    return folder


def test_the_current_release_is_current_here_too_byte_for_byte(place, here, tmp_path, monkeypatch):
    monkeypatch.setattr(pull_module, "PIECE_BYTES", 300)  # several pieces a file
    artifact = made(tmp_path / "models" / "a", "weights" * 50)
    sent = export(place, artifact, of="a")
    done = pull(place, here)
    assert (done.digest, done.before, done.sent_bytes) == (sent.digest, None, sent.sent_bytes)
    assert verify(here.root / "current") == verify(artifact)
    (listed,) = verify_releases(here)
    assert listed.is_current
    again = pull(place, here)
    assert (again.sent_bytes, again.before) == (0, sent.digest)


def test_what_another_release_here_holds_is_not_fetched_and_an_older_one_can_be_named(place, here, tmp_path):
    first = export(place, made(tmp_path / "models" / "a", "one"), of="a")
    pull(place, here)
    second = export(place, made(tmp_path / "models" / "b", "two"), of="b")
    done = pull(place, here)
    assert done.digest == second.digest
    assert 0 < done.reused_bytes < done.reused_bytes + done.sent_bytes
    assert pull(place, here, release=first.digest[:8]).digest == first.digest
    assert os.readlink(here.root / "current") == f"{RELEASES}/{first.digest}"


def test_a_pull_that_was_cut_short_goes_on_and_damage_is_fetched_again(place, here, tmp_path):
    artifact = made(tmp_path / "models" / "a", "weights")
    digest = export(place, artifact, of="a").digest
    begun = here.root / here.incoming(digest) / "model.safetensors"
    begun.parent.mkdir(parents=True)
    begun.write_bytes((artifact / "model.safetensors").read_bytes()[:100])
    assert pull(place, here).sent_bytes < sum(
        file.size_bytes for file in verify_releases(here)[0].record.files.values()
    )
    assert verify(here.root / "current").digest == digest
    other = open_place(str(tmp_path / "elsewhere"))
    damaged = other.root / other.incoming(digest) / "model.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"?" * 100)
    pull(place, other)
    assert verify(other.root / "current").digest == digest


def test_an_altered_release_is_refused_and_nothing_here_changes(here, tmp_path):
    place = open_place(str(tmp_path / "server"))
    digest = export(place, made(tmp_path / "models" / "a", "weights"), of="a").digest
    weights = place.root / RELEASES / digest / "model.safetensors"
    weights.write_bytes(b"?" + weights.read_bytes()[1:])
    with pytest.raises(RegistryError, match=r"model\.safetensors: altered; export it there again"):
        pull(place, here)
    assert here.digests() == []
    assert not (here.root / "current").exists()


def test_too_small_a_disk_is_refused_before_anything_is_fetched(here, tmp_path, monkeypatch):
    place = open_place(str(tmp_path / "server"))
    export(place, made(tmp_path / "models" / "a", "weights"), of="a")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused = r"bytes and the disk has 10; remove old releases \(turbopress gc\) or pull to another folder$"
    with pytest.raises(RegistryError, match=refused):
        pull(place, here)
    assert here.unfinished() == []


def test_the_command_pulls_and_refuses_in_one_line(tmp_path, turbopress):
    place = open_place(str(tmp_path / "server"))
    status, _, error = turbopress("pull", "--from", place.url, "--to", tmp_path / "here")
    assert (status, error) == (
        1, f"turbopress: {place.url}: no release is current; export one first (turbopress export)\n",
    )  # fmt: skip
    digest = export(place, made(tmp_path / "models" / "a", "weights"), of="a").digest
    status, out, told = turbopress("pull", "--from", place.url, "--to", tmp_path / "here")
    assert status == 0
    assert all(line.startswith("fetched ") for line in told.splitlines())
    assert told
    size_bytes = verify_releases(place)[0].record.size_bytes
    at = f"{tmp_path}/here/{RELEASES}/{digest}"
    assert out == f"{at}: fetched {size_bytes:,} bytes; current points at it\n"
    other = export(place, made(tmp_path / "models" / "b", "others"), of="b").digest
    out = turbopress("pull", "--from", place.url, "--to", tmp_path / "here", "--json")[1]
    said = json.loads(out)
    assert (said["release"], said["before"]) == (f"{tmp_path}/here/{RELEASES}/{other}", digest)
    assert said["fetched_bytes"] + said["reused_bytes"] == verify_releases(place)[-1].record.size_bytes
    turbopress("pull", "--from", place.url, "--to", tmp_path / "there", "--release", digest)
    out = turbopress("pull", "--from", place.url, "--to", tmp_path / "there")[1]
    reused = f"{said['reused_bytes']:,} bytes were here in other releases"
    assert out.endswith(f": fetched {said['fetched_bytes']:,} bytes, {reused}; current points at it\n")
    status, _, error = turbopress("pull", "--from", place.url, "--to", "s3://bucket/x")
    assert (status, error) == (
        1, "turbopress: --to: s3://bucket/x; choose a folder of this machine (turbopress export sends elsewhere)\n",
    )  # fmt: skip
