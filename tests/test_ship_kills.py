"""A server that reads while releases are switched, and while exporters are killed at random, sees whole models only."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_artifacts import fake_artifact

from registry.ship.place import open_place
from registry.ship.upkeep import releases, rollback
from registry.ship.verbs import export

pytest_plugins = ["ship_fixtures"]
HERE = Path(__file__).parent
KILLS = 12
SWITCHES = 30


@pytest.fixture
def folders(tmp_path):
    """Two artifacts of a megabyte, several files each, some of them shared."""
    for name in ("one", "two"):
        fake_artifact(tmp_path / "models" / name, os.urandom(5000).hex())
    return [tmp_path / "models" / "one", tmp_path / "models" / "two"]


@pytest.fixture(params=["folder", "sftp", "s3"])
def addresses(request, tmp_path):
    """Where the exporter writes, and where the server reads."""
    local = str(tmp_path / "server")
    if request.param == "folder":
        return local, local
    if request.param == "sftp":
        return f"sftp://{request.getfixturevalue('as_ssh_user').authority}{local}", local
    address = f"s3://{request.getfixturevalue('bucket')}/models"
    return address, address


@contextmanager
def reader(address):
    """A reader in a process of its own; what it saw is in the list that this yields, afterwards."""
    command = [sys.executable, str(HERE / "release_reader.py"), address]
    process, seen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True), []
    yield seen
    said, _ = process.communicate("")
    seen.append(json.loads(said))


def kill(address, kills, longest_s, scratch):
    command = [sys.executable, HERE / "kill_exports.py", address, kills, longest_s, 7, scratch, 1 << 20]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_reader_never_misses_while_current_moves(addresses, folders):
    place = open_place(addresses[0])
    export(place, folders[0], of="one")
    with reader(addresses[1]) as seen:
        for n in range(SWITCHES):
            export(place, folders[n % 2], of="again")
            if n % 3 == 0:
                rollback(place, releases(place)[0].digest)
    (found,) = seen
    assert found["misses"] == []
    assert len(found["releases"]) == 2
    assert found["reads"] > 10


def test_exporters_killed_at_random_leave_no_half_release_and_the_next_run_heals(addresses, tmp_path):
    with reader(addresses[1]) as seen:
        done = kill(addresses[0], KILLS, 0.5 if addresses[0] == addresses[1] else 1.5, tmp_path / "scratch")
    (found,) = seen
    assert done["killed"] == KILLS
    assert found["misses"] == []
    assert done["whole"] == list(range(len(done["whole"])))  # none was lost, and none is there twice
    place = open_place(addresses[0])
    assert place.unfinished() == []
    assert place.pointer().digest == done["last"]
