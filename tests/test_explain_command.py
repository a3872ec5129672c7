"""`turbopress explain` on a repository of a few files: what it prints, writes and attaches, and how it refuses."""

import json
import shutil

import pytest
from fake_artifacts import enter
from tiny_repository import make_repository, write_text

from registry.attach import attach
from registry.errors import RegistryError
from registry.manifest import verify
from registry.store import connect

pytest_plugins = ["fake_stores"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("repository"))
    write_text(root / "data" / "evaluation", ["law"] * 4 + ["code"] * 4)
    return root


@pytest.fixture
def repository(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "here"


def test_it_prints_why_and_what_to_try_and_writes_the_same(turbopress, repository):
    status, out, err = turbopress("explain", "awq-w4", "--windows", 4, "--layers", "all")
    assert status == 0
    assert all(word in out for word in ("Why", "What to try", "awq-w4 diverges", "  1. "))
    assert "explain: 4 windows of 16 tokens; 6 runs of a layer and for --layers all up to 1 more" in err
    assert "written: reports/explain/awq-w4.json, reports/explain/awq-w4.md, reports/explain/awq-w4.png" in err
    assert "not in MLflow: " in err
    folder = repository / "reports" / "explain"
    value = json.loads((folder / "awq-w4.json").read_text())
    assert value["artifact"] == verify(repository / "models" / "awq-w4").digest
    assert (len(value["layers"]), len(value["linears"]), value["windows"]) == (2, 14, 4)
    page = (folder / "awq-w4.md").read_text()
    assert all(finding["seen"] in page for finding in value["findings"])
    assert (folder / "awq-w4.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["awq-w4.json", "awq-w4.md", "awq-w4.png"]


def test_it_goes_to_the_run_of_the_version_that_was_explained(turbopress, repository, template):
    shutil.copy(template, repository)
    version = enter(repository).version
    status, _, err = turbopress("explain", "awq-w4", "--windows", 2, "--layers", "worst:1")
    assert status == 0
    assert f"in MLflow: demo v{version.number}, explain/" in err
    found = connect(repository).client.list_artifacts(version.run_id, "explain")
    assert [entry.path for entry in found] == [f"explain/awq-w4.{kind}" for kind in ("json", "md", "png")]


def test_json_is_the_file_and_the_same_every_time(turbopress, repository):
    first, second = (turbopress("explain", "awq-w4", "--json")[1] for _ in range(2))
    assert first == second
    assert json.loads(first) == json.loads((repository / "reports/explain/awq-w4.json").read_text())
    assert set(json.loads(first)["kl_by_domain"]) == {"law", "code"}


def test_another_s_artifact_needs_its_parent_named(turbopress, repository):
    theirs = repository / "theirs"
    shutil.copytree(repository / "models" / "awq-w4", theirs)
    (theirs / "manifest.json").unlink()
    status, _, err = turbopress("explain", "./theirs")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "theirs: no variant under quantize; name the model that it was quantized from with --parent" in err
    status, out, err = turbopress("explain", "./theirs", "--parent", "base", "--windows", 2)
    assert status == 0
    assert "theirs diverges" in out
    assert "not in MLflow: no artifact of ours" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("base", "--parent", "base"),
            "models/base: is not quantized; explain compares a quantized model with its 16-bit",
        ),
        (("awq-w4", "--on", "calibration"), "data/calibration: no windows"),
        (("awq-w4", "--on", "nothing"), "--on: nothing; choose evaluation, calibration, distillation"),
        (("awq-w4", "--layers", "7"), "--layers: 7; write all, worst:N, or numbers from 0 to 1 with commas between"),
        (("awq-w4", "--parent", "./source"), None),
        (("awq-w4", "--parent", "awq-w4"), "was not made from the "),
        (("awq-w5",), "awq-w5: no model in awq-w5 or "),
    ],
)
def test_what_cannot_be_explained_is_one_line(turbopress, repository, arguments, said):
    status, _, err = turbopress("explain", *arguments)
    if said is None:  # a parent without a manifest is taken at its word
        assert status == 0
        return
    assert status == 1
    (line,) = err.splitlines()
    assert line.startswith("turbopress: ")
    assert said in line
    assert not (repository / "reports" / "explain").exists()


def test_files_are_attached_to_the_run_of_the_version(root, artifact, tmp_path):
    version = enter(root).version
    (tmp_path / "why.md").write_text("because")
    facts = {"root": root, "model": "demo", "variant": "awq-w4", "digest": verify(artifact).digest, "place": "explain"}
    for text in ("first", "second"):
        (tmp_path / "why.md").write_text(text)
        assert attach([tmp_path / "why.md"], **facts).number == version.number
    client = connect(root).client
    assert [entry.path for entry in client.list_artifacts(version.run_id, "explain")] == ["explain/why.md"]
    (found,) = root.rglob("explain/why.md")
    assert found.read_text() == "second"
    with pytest.raises(RegistryError, match=r"gone\.md: no such file; write it first"):
        attach([tmp_path / "gone.md"], **facts)
    with pytest.raises(RegistryError, match=r"demo has no version of awq-w4 with these bytes; run: dvc repro"):
        attach([tmp_path / "why.md"], **(facts | {"digest": "0" * 64}))
