"""Releases at a folder, behind a real OpenSSH server and behind a real S3 server: the same promises in all three."""

import json
import shutil

import pytest
from fake_artifacts import fake_artifact
from shipped import Counting, ship

from registry.errors import RegistryError
from registry.manifest import verify
from registry.ship.place import RELEASES, Pointer, open_place
from registry.ship.release import RECORD, parse_record
from registry.ship.upkeep import collect_garbage, releases, rollback, verify_releases
from registry.ship.verbs import export, plan

pytest_plugins = ["ship_fixtures"]
MADE = {"serving/serve.yaml": b"engine: {}\n"}


def test_a_release_is_named_by_its_digest_holds_every_file_and_is_current(place, sent):
    watcher = Counting()
    done = export(place, sent, of="demo/1", watcher=watcher)
    manifest = verify(sent)
    assert done.digest == manifest.digest
    assert place.pointer() == Pointer(manifest.digest, ())
    record = parse_record("", place.read(f"{RELEASES}/{manifest.digest}/{RECORD}"))
    assert (record.artifact, record.of) == (manifest.digest, "demo/1")
    for name in record.files:
        assert place.read(f"{RELEASES}/{manifest.digest}/{name}") == (sent / name).read_bytes()
    assert done.sent_bytes == record.size_bytes == watcher.total == watcher.arrived
    (listed,) = verify_releases(place)
    assert listed.is_current


def test_files_for_the_server_travel_along_and_make_another_digest(place, sent):
    plain, served = ship(place, sent), ship(place, sent, MADE)
    assert plain.digest != served.digest
    assert place.read(f"{RELEASES}/{served.digest}/serving/serve.yaml") == b"engine: {}\n"
    assert place.pointer() == Pointer(served.digest, (plain.digest,))


def test_files_that_another_release_has_are_not_sent_again(place, sent):
    ship(place, sent)
    watcher = Counting()
    done = export(place, sent, of="demo/1", made=MADE, watcher=watcher)
    assert done.sent_bytes == len(b"engine: {}\n")
    assert done.reused_bytes == sum(p.stat().st_size for p in sent.rglob("*") if p.is_file())
    assert watcher.arrived == watcher.total
    verify_releases(place)


def test_what_is_there_is_not_sent_again_and_says_so(place, sent, monkeypatch):
    ship(place, sent)
    monkeypatch.setattr(type(place), "send", lambda *_: pytest.fail("sent again"))
    monkeypatch.setattr(type(place), "point", lambda *_: pytest.fail("pointed again"))
    again = ship(place, sent)
    assert again.sent_bytes == 0
    assert not again.moved
    assert "was there already" in str(again)


def test_a_dry_run_says_what_would_be_sent_and_changes_nothing(place, sent, other):
    planned = plan(place, sent, "demo/1", MADE)
    assert set(planned.send) == {
        "config.json", "manifest.json", "model.safetensors", "tokenizer/tokenizer.json", "serving/serve.yaml",
    }  # fmt: skip
    assert place.digests() == []
    assert place.pointer() == Pointer(None, ())
    ship(place, sent, MADE)
    assert plan(place, sent, "demo/1", MADE).is_current
    planned = plan(place, other, "demo/2", MADE)
    assert set(planned.send) == {"manifest.json", "model.safetensors"}
    assert set(planned.take) == {"config.json", "tokenizer/tokenizer.json", "serving/serve.yaml"}
    assert len(releases(place)) == 1


def test_rollback_goes_back_one_after_the_other_and_forward_by_name(place, sent, other, tmp_path):
    fake_artifact(tmp_path / "models" / "third", "third")
    one, two, three = (ship(place, f).digest for f in (sent, other, tmp_path / "models" / "third"))
    assert [rollback(place).digest, rollback(place).digest] == [two, one]
    with pytest.raises(RegistryError, match=r"nothing was current before; choose one with --to \(there are: "):
        rollback(place)
    assert rollback(place, three[:16]).digest == three
    assert [r.digest for r in releases(place)][-1] == three
    with pytest.raises(RegistryError, match=r"--to ffff: names 0 releases"):
        rollback(place, "ffff")


def test_gc_keeps_the_current_release_and_those_that_were_current_last(place, sent, tmp_path):
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


# --- folders


def test_a_release_outlives_the_artifact_and_a_move_of_the_whole_tree(sent, tmp_path):
    digest = verify(sent).digest
    ship(open_place(str(tmp_path / "server")), sent, MADE)
    shutil.rmtree(sent)
    (tmp_path / "server").rename(tmp_path / "mounted")
    assert verify(tmp_path / "mounted" / "current").digest == digest


def test_a_release_shares_no_file_with_the_artifact(sent, tmp_path):
    done = ship(open_place(str(tmp_path / "server")), sent)
    assert (tmp_path / "server" / RELEASES / done.digest / "model.safetensors").stat().st_nlink == 1


def test_a_history_that_is_a_step_behind_is_mended(sent, other, tmp_path):
    """Killed between the link and the history."""
    place = open_place(str(tmp_path / "server"))
    one, two = ship(place, sent).digest, ship(place, other).digest
    for history, before in (([one], (one,)), ([one, two], (one,)), ([one, two, "f" * 64], (one,)), (None, ())):
        path = tmp_path / "server" / "history.json"
        path.write_text("cut sho" if history is None else json.dumps(history))
        assert place.pointer() == Pointer(two, before)
