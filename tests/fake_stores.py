"""Stores for the registry's tests: each test has its own, copied from one whose tables were made once."""

import shutil

import pytest
import yaml
from fake_artifacts import fake_artifact
from gated import GATE
from tiny_repository import PARAMS

from registry.store import prepare


@pytest.fixture
def outside_of_dvc(monkeypatch, tmp_path):
    """No store, repository or experiment is named, and the current directory is none of the test's."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A database with MLflow's tables, which take five seconds to make."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
            patch.delenv(name, raising=False)
        prepare(root)
    return root / "mlflow.db"


@pytest.fixture
def root(template, outside_of_dvc, tmp_path):
    """A repository with an empty store."""
    home = tmp_path / "repository"
    home.mkdir()
    shutil.copy(template, home)
    return home


@pytest.fixture
def artifact(root):
    fake_artifact(root / "models" / "awq-w4")
    return root / "models" / "awq-w4"


@pytest.fixture
def here(root, monkeypatch):
    """A repository with a gate, which is the working folder."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"gate": GATE}, sort_keys=False))
    monkeypatch.chdir(root)
    return root
