"""A signature tells whether a folder is, byte for byte, what the owner of a key vouched for; real keys, no network."""

import subprocess

import pytest
from fake_artifacts import fake_artifact

from registry.errors import RegistryError
from registry.manifest import verify
from registry.ship.place import RELEASES, open_place
from registry.ship.verbs import export
from registry.signing import sign, signature_of, verify_signature

pytest.importorskip("model_signing", reason="model-signing is not installed: make install")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library's own dependencies


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private key and its public half, and those of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        made = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(folder / f"{name}.pem")]
        subprocess.run(made, check=True, capture_output=True)
        public = ["openssl", "ec", "-in", str(folder / f"{name}.pem"), "-pubout", "-out", str(folder / f"{name}.pub")]
        subprocess.run(public, check=True, capture_output=True)
    return folder


@pytest.fixture
def signed(tmp_path, keys):
    fake_artifact(tmp_path / "awq-w4")
    sign(tmp_path / "awq-w4", keys / "ours.pem", tmp_path / "awq-w4.sig")
    return tmp_path / "awq-w4"


def check(folder, key):
    verify_signature(folder, key, signature_of(folder))


def test_what_was_signed_is_known_by_the_public_key_and_the_artifact_is_unchanged(signed, keys):
    verify(signed)
    check(signed, keys / "ours.pub")


def test_another_s_key_and_a_changed_an_added_and_a_missing_file_are_refused(signed, keys):
    with pytest.raises(RegistryError, match=r"is not what .*theirs.pub signed"):
        check(signed, keys / "theirs.pub")
    config = (signed / "config.json").read_text()
    for change in (
        lambda: (signed / "config.json").write_text(config + " "),
        lambda: (signed / "evil.py").write_text("import os"),
        (signed / "tokenizer" / "tokenizer.json").unlink,
    ):
        change()
        with pytest.raises(RegistryError, match=r"is not what .*ours.pub signed") as refused:
            check(signed, keys / "ours.pub")
        assert len(str(refused.value).splitlines()) == 1
        (signed / "config.json").write_text(config)
        (signed / "evil.py").unlink(missing_ok=True)


def test_a_tampered_folder_is_not_signed(signed, keys):
    (signed / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"config.json has 2 bytes"):
        sign(signed, keys / "ours.pem", signed.with_name("again.sig"))
    assert not signed.with_name("again.sig").exists()


def test_what_is_no_key_signs_nothing(signed, keys, tmp_path):
    (tmp_path / "bad.pem").write_text("no key")
    for key in (tmp_path / "bad.pem", keys / "ours.pub"):
        with pytest.raises(RegistryError, match=r"signs nothing"):
            sign(signed, key, tmp_path / "x.sig")
    with pytest.raises(RegistryError, match=r"gone.pem: no such key"):
        sign(signed, tmp_path / "gone.pem", tmp_path / "x.sig")
    with pytest.raises(RegistryError, match=r"there is no signature; sign with: turbopress sign"):
        verify_signature(signed, keys / "ours.pub", tmp_path / "x.sig")
    assert not list(tmp_path.glob(".x.sig*"))


def test_a_signature_travels_with_the_release_and_holds_there(signed, keys, tmp_path):
    made = {"model.sig": signature_of(signed).read_bytes(), "serving/serve.yaml": b"engine: {}"}
    done = export(open_place(str(tmp_path / "server")), signed, of="awq-w4", made=made)
    release = tmp_path / "server" / RELEASES / done.digest
    assert verify(release) == verify(signed)
    check(release, keys / "ours.pub")
    (release / "config.json").write_text("{}")
    with pytest.raises(RegistryError):
        check(release, keys / "ours.pub")
