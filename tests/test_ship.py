"""Releases at a folder, behind a real OpenSSH server and behind a real S3 server: the same promises in all three."""

import json
import os
import shutil
import subprocess

import pytest
from fake_artifacts import fake_artifact
from ship_servers import start_sshd, stop

from registry.errors import RegistryError
from registry.manifest import verify
from registry.ship import folder as folder_module
from registry.ship import s3 as s3_module
from registry.ship import sftp as sftp_module
from registry.ship.place import RELEASES, Pointer, explained_place, open_place
from registry.ship.release import RECORD, parse_record
from registry.ship.upkeep import collect_garbage, releases, rollback, verify_releases
from registry.ship.verbs import export, plan

pytest_plugins = ["ship_fixtures"]
MADE = {"serving/serve.yaml": b"engine: {}\n"}


@pytest.fixture
def artifact(tmp_path):
    fake_artifact(tmp_path / "models" / "awq-w4")
    return tmp_path / "models" / "awq-w4"


@pytest.fixture
def other(tmp_path):
    fake_artifact(tmp_path / "models" / "other", "other")
    return tmp_path / "models" / "other"


def ship(place, folder, made=None):
    return export(place, folder, of=folder.name, made=made)


class Counting:
    def __init__(self):
        self.total = self.arrived = 0

    def begin(self, total_bytes):
        self.total = total_bytes

    def advance(self, arrived_bytes):
        self.arrived += arrived_bytes


def test_a_release_is_named_by_its_digest_holds_every_file_and_is_current(place, artifact):
    watcher = Counting()
    done = export(place, artifact, of="demo/1", watcher=watcher)
    manifest = verify(artifact)
    assert done.digest == manifest.digest
    assert place.pointer() == Pointer(manifest.digest, ())
    record = parse_record("", place.read(f"{RELEASES}/{manifest.digest}/{RECORD}"))
    assert (record.artifact, record.of) == (manifest.digest, "demo/1")
    for name in record.files:
        assert place.read(f"{RELEASES}/{manifest.digest}/{name}") == (artifact / name).read_bytes()
    assert done.sent_bytes == record.size_bytes == watcher.total == watcher.arrived
    (listed,) = verify_releases(place)
    assert listed.is_current


def test_files_for_the_server_travel_along_and_make_another_digest(place, artifact):
    plain, served = ship(place, artifact), ship(place, artifact, MADE)
    assert plain.digest != served.digest
    assert place.read(f"{RELEASES}/{served.digest}/serving/serve.yaml") == b"engine: {}\n"
    assert place.pointer() == Pointer(served.digest, (plain.digest,))


def test_files_that_another_release_has_are_not_sent_again(place, artifact):
    ship(place, artifact)
    watcher = Counting()
    done = export(place, artifact, of="demo/1", made=MADE, watcher=watcher)
    assert done.sent_bytes == len(b"engine: {}\n")
    assert done.reused_bytes == sum(p.stat().st_size for p in artifact.rglob("*") if p.is_file())
    assert watcher.arrived == watcher.total
    verify_releases(place)


def test_what_is_there_is_not_sent_again_and_says_so(place, artifact, monkeypatch):
    ship(place, artifact)
    monkeypatch.setattr(type(place), "send", lambda *_: pytest.fail("sent again"))
    monkeypatch.setattr(type(place), "point", lambda *_: pytest.fail("pointed again"))
    again = ship(place, artifact)
    assert again.sent_bytes == 0
    assert not again.moved
    assert "was there already" in str(again)


def test_a_dry_run_says_what_would_be_sent_and_changes_nothing(place, artifact, other):
    planned = plan(place, artifact, "demo/1", MADE)
    assert set(planned.send) == {
        "config.json", "manifest.json", "model.safetensors", "tokenizer/tokenizer.json", "serving/serve.yaml",
    }  # fmt: skip
    assert place.digests() == []
    assert place.pointer() == Pointer(None, ())
    ship(place, artifact, MADE)
    assert plan(place, artifact, "demo/1", MADE).is_current
    planned = plan(place, other, "demo/2", MADE)
    assert set(planned.send) == {"manifest.json", "model.safetensors"}
    assert set(planned.take) == {"config.json", "tokenizer/tokenizer.json", "serving/serve.yaml"}
    assert len(releases(place)) == 1


def test_rollback_goes_back_one_after_the_other_and_forward_by_name(place, artifact, other, tmp_path):
    fake_artifact(tmp_path / "models" / "third", "third")
    one, two, three = (ship(place, f).digest for f in (artifact, other, tmp_path / "models" / "third"))
    assert [rollback(place).digest, rollback(place).digest] == [two, one]
    with pytest.raises(RegistryError, match=r"nothing was current before; choose one with --to \(there are: "):
        rollback(place)
    assert rollback(place, three[:16]).digest == three
    assert [r.digest for r in releases(place)][-1] == three
    with pytest.raises(RegistryError, match=r"--to ffff: names 0 releases"):
        rollback(place, "ffff")


def test_gc_keeps_the_current_release_and_those_that_were_current_last(place, artifact, tmp_path):
    digests = []
    for n in range(5):
        fake_artifact(tmp_path / "models" / f"m{n}", f"weights {n}")
        digests.append(ship(place, tmp_path / "models" / f"m{n}").digest)
    doomed = [f"{RELEASES}/{digest}" for digest in digests[:2]]
    assert collect_garbage(place, 3, dry_run=True) == doomed
    assert len(releases(place)) == 5
    assert collect_garbage(place, 3) == doomed
    assert [r.digest for r in verify_releases(place)] == digests[2:]
    assert collect_garbage(place, 3) == []
    rollback(place, digests[2])
    collect_garbage(place, 1)
    assert [r.digest for r in releases(place)] == [digests[2]]
    with pytest.raises(RegistryError, match=r"--keep 0: would remove the current release"):
        collect_garbage(place, 0)


def test_an_export_that_was_cut_short_goes_on_and_is_no_release_until_it_ends(place, artifact, monkeypatch):
    sent, real = [], type(place).send

    def send_two(self, source, name, file, advance):
        if len(sent) == 2:
            raise OSError("the wire is cut")
        sent.append(name)
        real(self, source, name, file, advance)

    with monkeypatch.context() as patch:
        patch.setattr(type(place), "send", send_two)
        with pytest.raises(OSError, match="the wire is cut"):
            ship(place, artifact)
    assert releases(place) == []
    assert place.pointer() == Pointer(None, ())
    assert len(place.unfinished()) == 1
    planned = plan(place, artifact, "demo/1", {})
    assert 0 < len(planned.send) < 4
    done = ship(place, artifact)
    assert done.sent_bytes == planned.send_bytes
    assert place.unfinished() == []
    verify_releases(place)


def test_an_unfinished_upload_is_removed_when_asked(place, artifact, monkeypatch):
    ship(place, artifact)
    with monkeypatch.context() as patch:
        patch.setattr(type(place), "settle", fail)
        with pytest.raises(OSError, match="gone"):
            ship(place, artifact, MADE)
    assert collect_garbage(place, 3) == []
    assert len(collect_garbage(place, 3, unfinished=True)) == 1
    assert place.unfinished() == []
    verify_releases(place)


def fail(*_):
    raise OSError("gone")


@pytest.mark.parametrize("left", [1, 2500, 4096, 9999])
def test_half_a_file_is_continued_and_a_damaged_half_is_sent_anew(place, tmp_path, monkeypatch, left):
    for module, name in ((sftp_module, "BLOCK_BYTES"), (folder_module, "PIECE_BYTES")):
        monkeypatch.setattr(module, name, 4096)
    folder = tmp_path / "models" / "large"
    fake_artifact(folder, os.urandom(50).hex())  # 10,000 bytes
    whole = (folder / "model.safetensors").read_bytes()
    digest = verify(folder).digest
    for beginning in (whole[:left], b"\0" * left):
        put(place, f"{place.incoming(digest)}/model.safetensors", beginning, tmp_path)
        watcher = Counting()
        done = export(place, folder, of="demo/1", watcher=watcher)
        assert done.digest == digest
        assert watcher.arrived == watcher.total
        assert place.read(f"{RELEASES}/{digest}/model.safetensors") == whole
        place.remove(f"{RELEASES}/{digest}")


def put(place, name, content, tmp_path):
    """Writes bytes to a place past all checks, as a disk or a person may."""
    if isinstance(place, s3_module.S3Place):
        place._put(name, content)
        return
    path = tmp_path / "server" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_a_file_in_several_parts_is_continued_at_the_part_that_is_missing(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    place = open_place(f"s3://{bucket}/models")
    folder = tmp_path / "models" / "large"
    fake_artifact(folder, os.urandom(60_000).hex())  # 12 MB: three parts
    parts, real = [], s3_module.S3Place._call

    def call(self, method, **said):
        if method == "upload_part":
            if said["PartNumber"] == 2 and len(parts) == 1:
                raise OSError("the wire is cut")
            parts.append(said["PartNumber"])
        return real(self, method, **said)

    monkeypatch.setattr(s3_module.S3Place, "_call", call)
    with pytest.raises(OSError, match="the wire is cut"):
        ship(place, folder)
    assert len(place.unfinished()) == 1
    parts.append("again")
    ship(place, folder)
    assert parts == [1, "again", 2, 3]
    verify_releases(place)


def test_an_unfinished_upload_in_parts_is_removed_when_asked(bucket, tmp_path, monkeypatch):
    place = open_place(f"s3://{bucket}/models")
    place._call("create_multipart_upload", Key="models/releases/abc/model.safetensors")
    assert place.unfinished() == ["releases/abc"]
    assert collect_garbage(place, 3, unfinished=True) == ["releases/abc"]
    assert place.unfinished() == []


# --- what is refused


def test_a_tampered_artifact_is_not_exported(place, artifact):
    poison = b"poison!" * 99
    size = (artifact / "model.safetensors").stat().st_size
    (artifact / "model.safetensors").write_bytes(poison)
    with pytest.raises(RegistryError, match=r"model.safetensors has 693 bytes"):
        ship(place, artifact)
    (artifact / "model.safetensors").write_bytes(b"p" * size)
    with pytest.raises(RegistryError, match=r"model.safetensors.*was altered"):
        ship(place, artifact)
    assert releases(place) == []
    assert place.pointer().digest is None


def test_a_tampered_release_is_refused_before_the_switch_and_current_stays(place, artifact, other, tmp_path):
    first, second = ship(place, artifact).digest, ship(place, other).digest
    name = f"{RELEASES}/{first}/config.json"
    put(place, name, b"x" * len(place.read(name)), tmp_path)
    for attempt in (lambda: ship(place, artifact), lambda: rollback(place), lambda: verify_releases(place)):
        with pytest.raises(RegistryError, match=rf"{first}: config.json altered; remove that release"):
            attempt()
    put(place, name, b"{}", tmp_path)
    with pytest.raises(RegistryError, match=r"config.json has 2 bytes"):
        ship(place, artifact)
    assert place.pointer().digest == second


def test_a_missing_shard_and_a_stranger_in_a_release_are_refused(place, artifact, other, tmp_path):
    first, second = ship(place, artifact).digest, ship(place, other).digest
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
def test_a_record_that_is_not_ours_is_refused(place, artifact, tmp_path, change, words):
    digest = ship(place, artifact).digest
    name = f"{RELEASES}/{digest}/{RECORD}"
    said = json.loads(place.read(name))
    put(place, name, json.dumps(said | change).encode(), tmp_path)
    with pytest.raises(RegistryError, match=words) as refused:
        releases(place)
    assert len(str(refused.value).splitlines()) == 1


def test_a_symbolic_link_in_a_release_is_refused(artifact, other, tmp_path):
    place = open_place(str(tmp_path / "server"))
    first = ship(place, artifact).digest
    ship(place, other)
    shard = tmp_path / "server" / RELEASES / first / "config.json"
    shard.unlink()
    shard.symlink_to("/etc/passwd")
    with pytest.raises(RegistryError, match=r"is a symbolic link, and a release has none"):
        rollback(place)


def test_too_small_a_disk_is_refused_before_anything_is_sent(artifact, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    place = open_place(str(tmp_path / "server"))
    with pytest.raises(RegistryError, match=r"bytes and the disk has 10; remove old releases \(turbopress gc\)"):
        ship(place, artifact)
    assert place.unfinished() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("how", ["folder", "sftp"])
def test_a_disk_that_fills_up_on_the_way_is_one_line_and_nothing_moves(how, tmp_path, request, monkeypatch, artifact):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=True)
    try:
        server = request.getfixturevalue("as_ssh_user") if how == "sftp" else None
        place = open_place(f"sftp://{server.authority}{small}/server" if server else str(small / "server"))
        first = ship(place, artifact).digest
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


def test_a_server_that_allows_only_sftp_is_read_back(tmp_path, artifact, monkeypatch):
    server, process = start_sshd(tmp_path / "ssh", "ForceCommand internal-sftp")
    try:
        monkeypatch.setenv("HOME", str(server.home))
        place = open_place(f"sftp://{server.authority}{tmp_path}/server")
        ship(place, artifact)
        assert not place._has_shell
        verify_releases(place)
        name = next(iter((tmp_path / "server" / RELEASES).iterdir())) / "config.json"
        name.write_bytes(b"x" * name.stat().st_size)
        with pytest.raises(RegistryError, match=r"config.json altered"):
            verify_releases(place)
    finally:
        stop(process)


def test_a_folder_named_current_is_not_replaced(artifact, tmp_path):
    (tmp_path / "server" / "current").mkdir(parents=True)
    with pytest.raises(RegistryError, match=r"current: is no link, so it is not ours to replace"):
        ship(open_place(str(tmp_path / "server")), artifact)


# --- folders


def test_a_release_outlives_the_artifact_and_a_move_of_the_whole_tree(artifact, tmp_path):
    digest = verify(artifact).digest
    ship(open_place(str(tmp_path / "server")), artifact, MADE)
    shutil.rmtree(artifact)
    (tmp_path / "server").rename(tmp_path / "mounted")
    assert verify(tmp_path / "mounted" / "current").digest == digest


def test_a_release_shares_no_file_with_the_artifact(artifact, tmp_path):
    done = ship(open_place(str(tmp_path / "server")), artifact)
    assert (tmp_path / "server" / RELEASES / done.digest / "model.safetensors").stat().st_nlink == 1


def test_a_history_that_is_a_step_behind_is_mended(artifact, other, tmp_path):
    """Killed between the link and the history."""
    place = open_place(str(tmp_path / "server"))
    one, two = ship(place, artifact).digest, ship(place, other).digest
    for history, before in (([one], (one,)), ([one, two], (one,)), ([one, two, "f" * 64], (one,)), (None, ())):
        path = tmp_path / "server" / "history.json"
        path.write_text("cut sho" if history is None else json.dumps(history))
        assert place.pointer() == Pointer(two, before)
