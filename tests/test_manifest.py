"""An artifact is exactly the bytes that were sealed, and a folder that exists is whole."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_artifacts import fake_artifact

from registry.errors import RegistryError
from registry.manifest import MANIFEST, fresh_folder, read, seal, verify


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "awq-w4"
    fake_artifact(folder)
    return folder


def edit_manifest(folder: Path, **changes):
    place = folder / MANIFEST
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


def test_a_sealed_folder_verifies_and_lists_every_file_but_the_manifest(artifact):
    manifest = verify(artifact)
    assert list(manifest.files) == ["config.json", "model.safetensors", "tokenizer/tokenizer.json"]
    assert manifest.size_bytes == sum((artifact / name).stat().st_size for name in manifest.files)
    assert manifest == read(artifact)


def test_equal_inputs_give_equal_bytes_and_equal_digests_wherever_the_folder_lies(artifact, tmp_path):
    twin = fake_artifact(tmp_path / "elsewhere" / "another-name")
    assert twin.digest == verify(artifact).digest
    assert (tmp_path / "elsewhere/another-name" / MANIFEST).read_bytes() == (artifact / MANIFEST).read_bytes()


def test_sealing_again_changes_nothing(artifact):
    before = (artifact / MANIFEST).read_bytes()
    manifest = read(artifact)
    facts = {name: getattr(manifest, name) for name in ("recipe", "parents", "data", "seed", "origin", "versions")}
    seal(artifact, kind=manifest.kind, **facts)
    assert (artifact / MANIFEST).read_bytes() == before


def test_the_digest_changes_with_any_name_and_any_byte(artifact, tmp_path):
    renamed = tmp_path / "renamed"
    digests = {verify(artifact).digest, fake_artifact(tmp_path / "other", "Weights").digest}
    fake_artifact(renamed)
    (renamed / "config.json").rename(renamed / "konfig.json")
    digests.add(seal(renamed, kind="base", recipe={}, parents={}, data={}, seed=None, origin={}, versions={}).digest)
    assert len(digests) == 3


def test_an_altered_file_is_refused_with_what_was_expected_and_found(artifact):
    expected = read(artifact).files["model.safetensors"].sha256
    content = (artifact / "model.safetensors").read_bytes()
    (artifact / "model.safetensors").write_bytes(b"W" + content[1:])
    with pytest.raises(RegistryError, match=rf"model.safetensors was altered.*expected {expected}.*dvc repro"):
        verify(artifact)


def test_a_truncated_file_is_refused_with_both_sizes(artifact):
    os.truncate(artifact / "model.safetensors", 699)
    with pytest.raises(RegistryError, match=r"model.safetensors has 699 bytes, expected 700"):
        verify(artifact)


def test_a_missing_file_and_an_extra_file_are_refused_by_name(artifact):
    (artifact / "config.json").rename(artifact / "config.bak")
    with pytest.raises(RegistryError, match=r"config.json is missing; config.bak is not in the manifest"):
        verify(artifact)


def test_a_link_inside_is_refused_even_when_its_target_is_right(artifact, tmp_path):
    (artifact / "config.json").rename(tmp_path / "config.json")
    (artifact / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(RegistryError, match=r"config.json: is a symbolic link to .*; replace it"):
        verify(artifact)


def test_a_link_to_the_artifact_verifies(artifact, tmp_path):
    (tmp_path / "current").symlink_to(artifact)
    assert verify(tmp_path / "current") == read(artifact)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b", "a\\b", "", MANIFEST])
def test_a_listed_path_that_climbs_out_is_refused(artifact, name):
    edit_manifest(artifact, files={name: {"sha256": "0" * 64, "size_bytes": 1}})
    with pytest.raises(RegistryError, match="which is no path inside the artifact"):
        verify(artifact)


def test_a_manifest_of_the_future_is_refused_by_its_format(artifact):
    edit_manifest(artifact, format="turbopress-artifact/2", novelty=True)
    with pytest.raises(RegistryError, match=r"'turbopress-artifact/2'.*upgrade turbopress"):
        read(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "{}"])
def test_what_is_no_manifest_is_refused(artifact, text):
    (artifact / MANIFEST).write_text(text)
    with pytest.raises(RegistryError, match=f"{MANIFEST}: (is not JSON|has format None)"):
        read(artifact)


def test_an_unknown_key_and_a_malformed_digest_are_refused_with_their_place(artifact):
    edit_manifest(artifact, made_on="2024-01-01")
    with pytest.raises(RegistryError, match="made_on"):
        read(artifact)
    fields = json.loads((artifact / MANIFEST).read_text())
    del fields["made_on"]
    fields["files"]["config.json"]["sha256"] = "short"
    (artifact / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(RegistryError, match=r"files.config.json.sha256.*'short'"):
        read(artifact)


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RegistryError, match="there is no manifest"):
            verify(folder)


def test_sealing_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(RegistryError, match="holds no file to seal"):
        seal(tmp_path, kind="base", recipe={}, parents={}, data={}, seed=None, origin={}, versions={})


def test_a_fresh_folder_appears_only_when_it_is_finished(tmp_path):
    path = tmp_path / "models" / "awq-w4"
    with fresh_folder(path) as incoming:
        assert incoming.parent == path.parent
        assert not any(incoming.iterdir())
        (incoming / "config.json").write_text("{}")
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["awq-w4"]
    assert (path / "config.json").read_text() == "{}"


def write_half(path: Path, error: type[BaseException]):
    with fresh_folder(path) as incoming:
        (incoming / "half").write_text("")
        raise error


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_fresh_folder_that_failed(tmp_path, interruption):
    with pytest.raises(interruption):
        write_half(tmp_path / "a", interruption)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_named_with_its_remedy(tmp_path):
    with pytest.raises(RegistryError, match=r"/a: the disk is full; free space"), fresh_folder(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_is_taken_over_and_a_full_one_is_refused_before_the_work(tmp_path):
    (tmp_path / "a").mkdir()
    with fresh_folder(tmp_path / "a") as incoming:
        (incoming / "file").write_text("1")
    with pytest.raises(RegistryError, match="exists already"), fresh_folder(tmp_path / "a"):
        pytest.fail("the work began")
    assert (tmp_path / "a" / "file").read_text() == "1"


def test_what_a_killed_process_left_is_swept_away_and_what_a_living_one_writes_is_not(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from registry.manifest import fresh_folder\n"
        "with fresh_folder(Path(sys.argv[1])) as f: (f / 'half').touch(); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a")], cwd=Path(__file__).parents[1])
    try:
        half = tmp_path / f".a.incoming-{child.pid}" / "half"
        deadline = time.monotonic() + 20
        while not half.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(KeyboardInterrupt):
            write_half(tmp_path / "a", KeyboardInterrupt)
        assert half.exists()
    finally:
        child.kill()
        child.wait()
    assert half.exists()
    with fresh_folder(tmp_path / "a"):
        assert not half.exists()
