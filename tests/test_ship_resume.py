"""An export that was cut short goes on where it ended, or is removed when asked."""

import os

import pytest
from fake_artifacts import fake_artifact
from shipped import Counting, put, ship

from registry.manifest import verify
from registry.ship import folder as folder_module
from registry.ship import s3 as s3_module
from registry.ship import sftp as sftp_module
from registry.ship.place import RELEASES, Pointer, open_place
from registry.ship.upkeep import collect_garbage, releases, verify_releases
from registry.ship.verbs import export, plan

pytest_plugins = ["ship_fixtures"]
MADE = {"serving/serve.yaml": b"engine: {}\n"}


def test_an_export_that_was_cut_short_goes_on_and_is_no_release_until_it_ends(place, sent, monkeypatch):
    went, real = [], type(place).send

    def send_two(self, source, name, file, advance):
        if len(went) == 2:
            raise OSError("the wire is cut")
        went.append(name)
        real(self, source, name, file, advance)

    with monkeypatch.context() as patch:
        patch.setattr(type(place), "send", send_two)
        with pytest.raises(OSError, match="the wire is cut"):
            ship(place, sent)
    assert releases(place) == []
    assert place.pointer() == Pointer(None, ())
    assert len(place.unfinished()) == 1
    planned = plan(place, sent, "demo/1", {})
    assert 0 < len(planned.send) < 4
    done = ship(place, sent)
    assert done.sent_bytes == planned.send_bytes
    assert place.unfinished() == []
    verify_releases(place)


def test_an_unfinished_upload_is_removed_when_asked(place, sent, monkeypatch):
    ship(place, sent)
    with monkeypatch.context() as patch:
        patch.setattr(type(place), "settle", fail)
        with pytest.raises(OSError, match="gone"):
            ship(place, sent, MADE)
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
