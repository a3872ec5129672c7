"""What a run says of where an artifact came from, and what is put back when the store lost something."""

import shutil
import subprocess

import pytest
from fake_artifacts import enter, runs

from registry.errors import RegistryError
from registry.manifest import verify
from registry.resolve import resolve
from registry.store import connect

pytest_plugins = ["fake_stores"]


def test_the_git_commit_and_its_dirtiness_are_on_the_run(root, artifact):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=root, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], cwd=root, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    enter(root)
    (run,) = runs(root)
    assert run.data.tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert run.data.tags["git.dirty"] == "true"


def test_a_version_whose_files_vanished_is_refused_with_the_remedy_and_heals_at_the_next_publish(root, artifact):
    enter(root)
    shutil.rmtree(root / "mlartifacts")
    with pytest.raises(RegistryError, match=r"files of demo/1 are gone.*dvc repro"):
        resolve("demo@awq-w4", root=root)
    healed = enter(root)
    assert (healed.outcome, healed.placed, healed.version.number) == ("unchanged", "linked", 1)
    assert verify(resolve("demo@awq-w4", root=root)) == verify(artifact)


def test_a_version_whose_logged_model_was_deleted_is_registered_anew(root, artifact):
    connect(root).client.delete_logged_model(enter(root).version.model_id)
    assert enter(root).version.number == 2
    assert verify(resolve("demo@awq-w4", root=root)) == verify(artifact)


def test_a_lost_database_fills_again(root, artifact, template):
    enter(root)
    shutil.copy(template, root / "mlflow.db")
    assert enter(root).outcome == "registered"
    assert verify(resolve("demo@awq-w4", root=root)) == verify(artifact)
