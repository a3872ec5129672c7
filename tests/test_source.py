"""A base is a folder or a pinned commit of a hub; what comes from a hub is data, never Python.

The downloads are real: the hubs' own client libraries talk to a small server. They read its address when they are
imported, and so run in a process of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import COMMIT, hub

from compress.checkpoint.source import resolve
from compress.errors import CompressError

CHECKOUT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from compress.checkpoint.source import resolve
from compress.errors import CompressError
try:
    print(resolve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
except CompressError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture
def server():
    with hub() as (address, asked):
        yield address, asked


def resolve_elsewhere(source, revision, folder, address, **environment):
    """Resolves in a fresh process whose hubs are the server; returns the folder, or the refusal."""
    own = {"HF_ENDPOINT": address, "HF_HOME": f"{folder}/hf", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}
    own |= {"MODELSCOPE_ENDPOINT": address, "MODELSCOPE_CACHE": f"{folder}/ms", "MODELSCOPE_HOME": f"{folder}/home"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, revision, folder],
        env={**os.environ, **own, **environment},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    refusals = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert done.returncode == 0 or len(refusals) == 1, done.stderr
    return refusals[0] if refusals else Path(done.stdout.splitlines()[-1])


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def model_folder(folder, *files):
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_taken_relative_to_the_root(tmp_path):
    folder = model_folder(tmp_path / "demo" / "base", "config.json", "model.safetensors")
    assert resolve("demo/base", None, tmp_path) == folder
    assert resolve(str(folder), None, tmp_path / "elsewhere") == folder


@pytest.mark.parametrize(
    ("files", "reason"), [([], "no config.json"), (["config.json"], "no .*safetensors and no .*bin")]
)
def test_a_folder_without_a_model_is_refused(files, reason, tmp_path):
    folder = model_folder(tmp_path / "base", *files)
    with pytest.raises(CompressError, match=reason) as refusal:
        resolve("base", None, tmp_path)
    assert str(refusal.value).startswith(str(folder))


def test_a_folder_takes_no_revision(tmp_path):
    model_folder(tmp_path / "base", "config.json", "model.safetensors")
    with pytest.raises(
        CompressError, match=r"base.revision: 'v1', but base.source 'base' is a folder; write revision: null"
    ):
        resolve("base", "v1", tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "/no/where", "a/b/c", "~/base", ""])
def test_a_missing_folder_is_named(source, tmp_path):
    with pytest.raises(CompressError, match=r"base\.source|no config\.json"):
        resolve(source, None, tmp_path)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_a_hugging_face_id_needs_its_commit(revision, tmp_path):
    with pytest.raises(CompressError, match=r"params.yaml `revision: <40 hex digits>` under base") as refusal:
        resolve("org/tiny", revision, tmp_path)
    assert repr(revision) in str(refusal.value)
    assert f"no folder under {tmp_path}" in str(refusal.value)


@pytest.mark.parametrize("revision", [None, "", "main", "master"])
def test_a_modelscope_id_needs_a_revision_that_stays(revision, tmp_path):
    with pytest.raises(CompressError, match=r"params.yaml `revision: <tag or commit>` under base"):
        resolve("modelscope:org/tiny", revision, tmp_path)


def test_a_modelscope_name_without_an_organisation_is_refused(tmp_path):
    with pytest.raises(CompressError, match="write modelscope:org/name"):
        resolve("modelscope:tiny", "v1", tmp_path)


def test_hugging_face_gives_the_data_of_the_commit_and_no_python(server, tmp_path):
    address, asked = server
    folder = resolve_elsewhere("org/tiny", COMMIT, tmp_path, address)
    assert names(folder) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.model"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert all(COMMIT in path for path in asked)
    assert not [path for path in asked if path.endswith((".py", ".bin", ".md"))]


def test_a_fetched_base_needs_no_network_the_second_time(server, tmp_path):
    address, asked = server
    folder = resolve_elsewhere("org/tiny", COMMIT, tmp_path, address)
    asked.clear()
    assert resolve_elsewhere("org/tiny", COMMIT, tmp_path, address, HF_HUB_OFFLINE="1") == folder
    assert not asked


def test_pickled_weights_are_fetched_where_there_are_no_others(server, tmp_path):
    address, asked = server
    assert names(resolve_elsewhere("org/old", COMMIT, tmp_path, address)) == ["config.json", "pytorch_model.bin"]
    assert not [path for path in asked if path.endswith(".py")]


@pytest.mark.parametrize(
    ("source", "revision", "reason"),
    [
        ("org/none", COMMIT, "no such repository on Hugging Face; correct base.source"),
        ("org/tiny", "f" * 40, "no such commit; correct base.revision"),
        ("org/gated", COMMIT, "gated; accept its terms and set HF_TOKEN"),
        ("org/empty", COMMIT, "no *.safetensors and no *.bin"),
    ],
)
def test_what_hugging_face_refuses_is_said_in_one_line(source, revision, reason, server, tmp_path):
    assert reason in str(resolve_elsewhere(source, revision, tmp_path, server[0]))


def test_without_a_network_one_line_says_so(server, tmp_path):
    refusal = resolve_elsewhere("org/tiny", COMMIT, tmp_path, server[0], HF_HUB_OFFLINE="1")
    assert str(refusal).startswith(f"refused: base.source: org/tiny at {COMMIT}: Hugging Face gave no files (")
    assert "copy the model here" in str(refusal)


@pytest.mark.skipif(find_spec("modelscope") is None, reason="the extra turbopress[modelscope] is not installed")
def test_modelscope_gives_the_data_of_the_revision_and_no_python(server, tmp_path):
    address, asked = server
    folder = resolve_elsewhere("modelscope:org/tiny", "v1.0.3", tmp_path, address)
    assert names(folder) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.model"]
    fetched = [path for path in asked if "FilePath=" in path]
    assert all("Revision=v1.0.3" in path for path in fetched)
    assert not [path for path in fetched if path.endswith((".py", ".bin", ".md"))]


def test_modelscope_is_asked_for_pickled_weights_only_without_others(monkeypatch, tmp_path):
    """The client is replaced by its signature: this must hold where the extra is not installed, too."""
    folder = model_folder(tmp_path / "cache", "config.json", "pytorch_model.bin")
    calls = []

    def download(name, **options):
        calls.append((name, options["revision"], options["allow_patterns"]))
        return str(folder)

    monkeypatch.setitem(sys.modules, "modelscope.hub.snapshot_download", SimpleNamespace(snapshot_download=download))
    assert resolve("modelscope:org/old", "v1", tmp_path) == folder
    data = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
    assert calls == [("org/old", "v1", data), ("org/old", "v1", ["*.bin"])]


def test_a_missing_modelscope_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "modelscope.hub.snapshot_download", None)
    with pytest.raises(CompressError, match=r"modelscope is not installed; pip install 'turbopress\[modelscope\]'"):
        resolve("modelscope:org/tiny", "v1", tmp_path)
