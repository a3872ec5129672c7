"""Registering that is killed at random leaves no half version, and the next run makes good what was cut short."""

import json
import os
import subprocess
import sys
from pathlib import Path

pytest_plugins = ["fake_stores"]
HERE = Path(__file__).parent
KILLS = 6


def test_a_killed_registration_leaves_no_half_version_and_the_next_run_heals(root):
    command = [sys.executable, str(HERE / "kill_registers.py"), str(root), str(KILLS), "1.5", "3"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))} | {
        "PYTHONPATH": str(HERE.parent)
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] == KILLS
    assert (said["half_visible"], said["lost"], said["doubled"]) == (0, 0, 0)
    assert said["alias_is_last"]
    assert said["versions"] == said["artifacts"] >= 1
