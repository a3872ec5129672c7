"""Which store is meant, how it comes into being, and what is read from it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fake_artifacts import enter, fake_artifact, fake_report

from registry.errors import RegistryError
from registry.manifest import verify
from registry.resolve import list_versions, resolve
from registry.store import tracking_uri

REPOSITORY = Path(__file__).parents[1]
pytest_plugins = ["fake_stores"]
pytestmark = pytest.mark.usefixtures("outside_of_dvc")


def test_a_moved_store_is_refused_with_the_remedy(root, artifact, tmp_path):
    enter(root)
    root.rename(tmp_path / "moved")
    with pytest.raises(RegistryError, match=r"was moved; .*move it back, or remove"):
        enter(tmp_path / "moved")


def test_an_unknown_name_is_answered_with_the_names_that_exist(root, artifact):
    enter(root)
    with pytest.raises(RegistryError, match=r"demo@champion: no such version; aliases: @awq-w4 → /1; versions: 1"):
        resolve("demo@champion", root=root)
    with pytest.raises(RegistryError, match=r"has no model 'dem' \(it has: demo\)"):
        resolve("dem@awq-w4", root=root)
    with pytest.raises(RegistryError, match=r"'demo': names no version; write name@alias"):
        resolve("demo", root=root)


def test_a_reader_makes_no_store(tmp_path):
    with pytest.raises(RegistryError, match=r"mlflow.db: nothing was registered here yet"):
        resolve("demo@awq-w4", root=tmp_path / "elsewhere")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_the_store_lies_in_the_repository_and_nothing_in_the_current_directory(root, artifact, tmp_path):
    enter(root)
    assert (root / "mlartifacts").is_dir()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_in_an_experiments_folder_the_store_is_that_of_dvc_root(root, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    fake_artifact(temporary / "models" / "awq-w4")
    monkeypatch.setenv("DVC_ROOT", str(root))
    enter(temporary)
    assert not (temporary / "mlflow.db").exists()
    assert verify(resolve("demo@awq-w4", root=root))


@pytest.mark.parametrize(
    "uri", ["./mlruns", "mlruns", "file:///tmp/mlruns", "sqlite:///mlflow.db", "sqlite://", "http:"]
)
def test_a_store_that_does_not_last_is_refused(uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryError, match=rf"MLFLOW_TRACKING_URI={uri}: names no store.*sqlite:////absolute"):
        tracking_uri(tmp_path)


def test_an_old_file_store_is_refused_unless_another_store_is_named(tmp_path, monkeypatch):
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    with pytest.raises(RegistryError, match=r"mlruns: is an MLflow file store.*migrate-filestore"):
        tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////srv/mlflow.db")
    assert tracking_uri(tmp_path) == "sqlite:////srv/mlflow.db"


# The publishing program of its own process: it reports each address that anything in it connects to.
PROGRAM = """
import json, sys
from pathlib import Path
calls = []
sys.addaudithook(lambda name, facts: calls.append(str(facts[1])) if name == "socket.connect" else None)
from registry.publish import publish
root, variant = Path(sys.argv[1]), sys.argv[2]
report = json.loads((root / f"{variant}.json").read_text())
print(publish(root / "models" / variant, report, root=root, model="demo", variant=variant))
print(f"connected to {calls}")
"""


def test_two_processes_fill_an_empty_store_at_once_quietly_and_without_the_network(tmp_path):
    variants = ("awq-w4", "student")
    for variant in variants:
        fake_artifact(tmp_path / "models" / variant, variant)
        (tmp_path / f"{variant}.json").write_text(json.dumps(fake_report(variant)))
    quiet = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), variant],
            env=quiet | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for variant in variants
    ]
    said = "".join(sorted(process.communicate(timeout=120)[0] for process in started))
    line = r"demo v[12] \((\S+)\): registered, files linked, alias \1\nconnected to \[\]\n"
    assert [match[1] for match in re.finditer(line, said)] == sorted(variants, key=said.index), said
    assert len(said.splitlines()) == 4, said
    assert {v.aliases for v in list_versions("demo", root=tmp_path)} == {(variant,) for variant in variants}


@pytest.fixture
def server(template, tmp_path, monkeypatch):
    """A real MLflow server on a free loopback port, over a store of its own."""
    home = tmp_path / "server"
    home.mkdir()
    shutil.copy(template, home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, *store], env=environment, stdout=log, stderr=log, cwd=home)
    try:
        await_health(f"http://127.0.0.1:{port}/health", process, home / "log")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        yield home
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def await_health(address, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def test_a_server_named_by_mlflow_tracking_uri_takes_the_artifact_and_gives_it_back(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "repository"
    fake_artifact(root / "models" / "awq-w4")
    published = [enter(root) for _ in range(2)]
    assert [(p.outcome, p.placed) for p in published] == [("registered", "uploaded"), ("unchanged", None)]
    assert not (root / "mlflow.db").exists()
    folder = resolve("demo@awq-w4", root=root)
    assert verify(folder) == verify(root / "models" / "awq-w4")
    assert folder.is_relative_to(tmp_path / "cache")
    shutil.rmtree(server / "files")
    assert enter(root).placed == "uploaded"
