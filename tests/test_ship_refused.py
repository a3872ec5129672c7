"""What is not exported, and no release: damage, records and links that are not ours, no room, servers that refuse."""

import json
import os
import shutil
import subprocess

import pytest
from fake_artifacts import fake_artifact
from ship_servers import start_sshd, stop
from shipped import put, ship

from registry.errors import RegistryError
from registry.ship.place import RELEASES, Pointer, explained_place, open_place
from registry.ship.release import RECORD
from registry.ship.upkeep import releases, rollback, verify_releases

pytest_plugins = ["ship_fixtures"]


def test_a_tampered_artifact_is_not_exported(place, sent):
    poison = b"poison!" * 99
    size = (sent / "model.safetensors").stat().st_size
    (sent / "model.safetensors").write_bytes(poison)
    with pytest.raises(RegistryError, match=r"model.safetensors has 693 bytes"):
        ship(place, sent)
    (sent / "model.safetensors").write_bytes(b"p" * size)
    with pytest.raises(RegistryError, match=r"model.safetensors.*was altered"):
        ship(place, sent)
    assert releases(place) == []
    assert place.pointer().digest is None


def test_a_tampered_release_is_refused_before_the_switch_and_current_stays(place, sent, other, tmp_path):
    first, second = ship(place, sent).digest, ship(place, other).digest
    name = f"{RELEASES}/{first}/config.json"
    put(place, name, b"x" * len(place.read(name)), tmp_path)
    for attempt in (lambda: ship(place, sent), lambda: rollback(place), lambda: verify_releases(place)):
        with pytest.raises(RegistryError, match=rf"{first}: config.json altered; remove that release"):
            attempt()
    put(place, name, b"{}", tmp_path)
    with pytest.raises(RegistryError, match=r"config.json has 2 bytes"):
        ship(place, sent)
    assert place.pointer().digest == second


def test_a_missing_shard_and_a_stranger_in_a_release_are_refused(place, sent, other, tmp_path):
    first, second = ship(place, sent).digest, ship(place, other).digest
    put(place, f"{RELEASES}/{first}/evil.py", b"import os", tmp_path)
    with pytest.raises(RegistryError, match=r"evil.py is not of it"):
        rollback(place)
    place.remove(f"{RELEASES}/{first}")
    with pytest.raises(RegistryError, match=r"nothing was current before"):
        rollback(place)
    assert place.pointer().digest == second


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "turbopress-release/9"}, "has format 'turbopress-release/9', but"),
        (
            {"files": {"../../etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}},
            "lists '../../etc/passwd', which is no",
        ),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}}, "lists '/etc/passwd', which is no path"),
        ({"files": {}}, "is the record of"),
        ({"surprise": 1}, "is no record of a release"),
    ],
    ids=["future", "climbs", "absolute", "another", "unknown-key"],
)
def test_a_record_that_is_not_ours_is_refused(place, sent, tmp_path, change, words):
    digest = ship(place, sent).digest
    name = f"{RELEASES}/{digest}/{RECORD}"
    said = json.loads(place.read(name))
    put(place, name, json.dumps(said | change).encode(), tmp_path)
    with pytest.raises(RegistryError, match=words) as refused:
        releases(place)
    assert len(str(refused.value).splitlines()) == 1


def test_a_symbolic_link_in_a_release_is_refused(sent, other, tmp_path):
    place = open_place(str(tmp_path / "server"))
    first = ship(place, sent).digest
    ship(place, other)
    shard = tmp_path / "server" / RELEASES / first / "config.json"
    shard.unlink()
    shard.symlink_to("/etc/passwd")
    with pytest.raises(RegistryError, match=r"is a symbolic link, and a release has none"):
        rollback(place)


def test_too_small_a_disk_is_refused_before_anything_is_sent(sent, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    place = open_place(str(tmp_path / "server"))
    with pytest.raises(RegistryError, match=r"bytes and the disk has 10; remove old releases \(turbopress gc\)"):
        ship(place, sent)
    assert place.unfinished() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("how", ["folder", "sftp"])
def test_a_disk_that_fills_up_on_the_way_is_one_line_and_nothing_moves(how, tmp_path, request, monkeypatch, sent):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=True)
    try:
        server = request.getfixturevalue("as_ssh_user") if how == "sftp" else None
        place = open_place(f"sftp://{server.authority}{small}/server" if server else str(small / "server"))
        first = ship(place, sent).digest
        fake_artifact(tmp_path / "models" / "large", os.urandom(5000).hex())  # 1 MB
        monkeypatch.setattr(type(place), "free_bytes", lambda _: None)  # the far end does not say, or lies
        with (
            pytest.raises(RegistryError, match=r"refused: .*; mend that and run again") as refused,
            explained_place("there"),
        ):
            ship(place, tmp_path / "models" / "large")
        assert len(str(refused.value).splitlines()) == 1
        assert place.pointer().digest == first
        assert [r.digest for r in verify_releases(place)] == [first]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("address", ["ftp://host/models", "gs://bucket/models", "http://host/models"])
def test_other_addresses_are_refused_by_name(address):
    with pytest.raises(RegistryError, match=rf"{address}: \w+:// is no place to export to; give a folder, sftp"):
        open_place(address)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(RegistryError, match=r"holds a password, which would end in logs; use a key") as refused:
        open_place("sftp://me:secret@host/models")
    assert "secret" not in str(refused.value)


def refusal(address, act=lambda place: place.pointer()):
    with pytest.raises(RegistryError) as refused, explained_place(address):
        act(open_place(address))
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_a_server_that_is_down_is_one_line(as_ssh_user, bucket, tmp_path, monkeypatch):
    assert "refused: " in refusal(f"sftp://127.0.0.1:1{tmp_path}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "refused: " in refusal(f"s3://{bucket}/models")


def test_an_unknown_host_and_a_changed_key_are_refused(as_ssh_user, tmp_path, monkeypatch):
    stranger = tmp_path / "stranger"
    shutil.copytree(as_ssh_user.home / ".ssh", stranger / ".ssh")
    monkeypatch.setenv("HOME", str(stranger))
    address = f"sftp://{as_ssh_user.authority}{tmp_path}/server"
    assert open_place(address).pointer() == Pointer(None, ())
    (stranger / ".ssh" / "known_hosts").write_text("")
    assert "Host key is not trusted" in refusal(address)
    other = (as_ssh_user.home / ".ssh" / "id_ed25519.pub").read_text().split()[:2]
    (stranger / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{as_ssh_user.port} {' '.join(other)}\n")
    assert "Host key is not trusted" in refusal(address)


def test_a_wrong_key_is_refused(as_ssh_user, tmp_path, monkeypatch):
    wrong = tmp_path / "wrong"
    (wrong / ".ssh").mkdir(parents=True)
    shutil.copy(as_ssh_user.home / ".ssh" / "known_hosts", wrong / ".ssh")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(wrong / ".ssh" / "id_ed25519")], check=True
    )
    monkeypatch.setenv("HOME", str(wrong))
    assert "Permission denied" in refusal(f"sftp://{as_ssh_user.authority}{tmp_path}/server")


def test_a_bucket_that_is_not_there_is_refused(bucket):
    assert "refused: " in refusal("s3://no-such-bucket-here/models")


def test_a_server_that_allows_only_sftp_is_read_back(tmp_path, sent, monkeypatch):
    server, process = start_sshd(tmp_path / "ssh", "ForceCommand internal-sftp")
    try:
        monkeypatch.setenv("HOME", str(server.home))
        place = open_place(f"sftp://{server.authority}{tmp_path}/server")
        ship(place, sent)
        assert not place._has_shell
        verify_releases(place)
        name = next(iter((tmp_path / "server" / RELEASES).iterdir())) / "config.json"
        name.write_bytes(b"x" * name.stat().st_size)
        with pytest.raises(RegistryError, match=r"config.json altered"):
            verify_releases(place)
    finally:
        stop(process)


def test_a_folder_named_current_is_not_replaced(sent, tmp_path):
    (tmp_path / "server" / "current").mkdir(parents=True)
    with pytest.raises(RegistryError, match=r"current: is no link, so it is not ours to replace"):
        ship(open_place(str(tmp_path / "server")), sent)
