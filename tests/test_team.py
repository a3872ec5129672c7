"""One variable, and a team registers in one place: a real PostgreSQL, a real S3 store, several machines at once."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_artifacts import enter, fake_artifact, fake_report

from registry.errors import RegistryError
from registry.manifest import verify
from registry.promote import Decision, promote
from registry.races import settled
from registry.resolve import list_versions, resolve
from registry.store import connect

pytest_plugins = ["fake_stores", "team_server"]
REPOSITORY = Path(__file__).parents[1]
MACHINES = 4
VARIANTS = ("base", "shallow", "awq-w4")

# A machine of the team: it registers everything that it has when the others do, in an order of its own.
MACHINE = """
import json, sys, time
from pathlib import Path
from registry.publish import publish
import mlflow
root, start, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
variants = sys.argv[4:]
print("ready", flush=True)
while not start.exists():
    time.sleep(0.01)
for n in range(len(variants)):
    variant = variants[(n + number) % len(variants)]
    report = json.loads((root / f"{variant}.json").read_text())
    print(publish(root / "models" / variant, report, root=root, model=sys.argv[2].rsplit("-", 1)[1], variant=variant))
"""


@pytest.fixture
def machine(team, tmp_path, outside_of_dvc, monkeypatch):
    """A machine that knows the server's address and nothing of its database or bucket."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def make_artifacts(root):
    for variant in VARIANTS:
        fake_artifact(root / "models" / variant, f"{root.name} {variant}")
        (root / f"{variant}.json").write_text(json.dumps(fake_report(variant)))


def register_at_once(root, model, machines):
    """Several machines register the same variants; what each of them said."""
    start = root / f"start-{model}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MACHINE, str(root), str(start), str(n), *VARIANTS],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(machines)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    start.touch()
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * machines, [err[-2000:] for _, err in said]
    return [out for out, _ in said]


def test_the_server_takes_an_artifact_into_s3_and_gives_it_back_verified(machine, team):
    root = machine / "repository"
    fake_artifact(root / "models" / "awq-w4", "team")
    assert [enter(root).outcome for _ in range(2)] == ["registered", "unchanged"]
    assert not (root / "mlflow.db").exists()
    assert verify(resolve("demo@awq-w4", root=root)) == verify(root / "models" / "awq-w4")
    promoted = promote("demo@awq-w4", root=root, to="champion", judge=lambda _: Decision(True, "passes"))
    assert promoted.is_champion
    assert verify(resolve("demo@champion", root=root)) == verify(root / "models" / "awq-w4")


def test_several_machines_at_once_lose_nothing_and_duplicate_nothing(machine):
    root = machine / "several"
    make_artifacts(root)
    said = register_at_once(root, "many", MACHINES)
    assert all(len(out.splitlines()) == len(VARIANTS) for out in said)
    listed = list_versions("many", root=root)
    assert Counter(version.variant for version in listed) == dict.fromkeys(VARIANTS, 1)
    assert {alias for version in listed for alias in version.aliases} == set(VARIANTS)
    client = connect(root).client
    for version in listed:
        assert client.get_logged_model(version.model_id).status == "READY"
        folder = resolve(f"many@{version.variant}", root=root)
        assert verify(folder) == verify(root / "models" / version.variant)
    experiment = client.get_experiment_by_name("many").experiment_id
    alive = client.search_logged_models([experiment])
    assert Counter(m.name for m in alive if m.status == "READY") == dict.fromkeys(VARIANTS, 1)


def test_a_new_server_is_filled_by_registering_again(machine, team, template, monkeypatch):
    root = machine / "moving"
    make_artifacts(root)
    shutil.copy(template, root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for variant in VARIANTS:
        enter(root, variant)
    before = {v.variant: v.digest for v in list_versions("demo", root=root)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    assert [enter(root, variant).outcome for variant in VARIANTS] == ["registered"] * len(VARIANTS)
    now = {v.variant: v.digest for v in list_versions("demo", root=root) if v.digest in before.values()}
    assert now == before


def test_a_server_that_is_down_is_one_line(machine, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fake_artifact(machine / "down" / "models" / "awq-w4")
    for attempt in (lambda: enter(machine / "down"), lambda: resolve("demo@awq-w4", root=machine / "down")):
        with pytest.raises(RegistryError, match=r"http://127.0.0.1:1.*: refused: ") as refused:
            attempt()
        assert len(str(refused.value).splitlines()) == 1


def test_a_lost_race_is_asked_again_and_another_error_is_not():
    answers = [RuntimeError("UniqueViolation: duplicate key"), RuntimeError("deadlock detected"), "written"]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert settled(call) == "written"
    answers = [RuntimeError("no such table"), "never asked"]
    with pytest.raises(RuntimeError, match="no such table"):
        settled(call)
    answers = [RuntimeError("deadlock")] * 50
    with pytest.raises(RuntimeError, match="deadlock"):
        settled(call)
