"""What was read on real cards is what is planned, and the benchmark that reads them goes on where one reading fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lmdeploy_environment import executable
from tiny import CONFIG, write_config

from serving.memory import plan
from serving.profile import EngineProfile
from serving.shape import Shape

ROOT = Path(__file__).parents[1]
ROWS = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text("utf8"))
READ = [row for row in ROWS if "reason" not in row]
ENGINE = """import json, sys
print("READY", flush=True)
engine = json.loads(sys.stdin.readline())
if engine["quant_policy"] == 8:
    sys.exit("Check failed: no kernel")
after = 500 + int(engine["cache_max_entry_count"] * 143271)
read = {"device": "NVIDIA H200", "total_mib": 143771, "before_mib": 500, "after_mib": after, "answer": "so"}
print("READ " + json.dumps(read))
"""


@pytest.mark.parametrize("row", READ, ids=lambda r: f"{r['model']}, {r['device']}, {r['cache']}, KV {r['kv_bits']}")
def test_the_readings_of_real_cards_are_met_within_5_percent(row):
    assert row["total_bytes"] == pytest.approx(row["read_bytes"], rel=0.05)
    assert row["difference"] == pytest.approx(row["total_bytes"] / row["read_bytes"] - 1)


@pytest.mark.parametrize("row", [row for row in READ if "decoder" in row], ids=lambda r: f"{r['model']}, {r['cache']}")
def test_the_planner_of_today_says_what_was_compared(row):
    told = EngineProfile(
        cache_max_entry_count=row["cache"],
        quant_policy=row["kv_bits"] % 16,
        max_batch_size=row["max_batch"],
        session_len=row["decoder"]["max_positions"],
    )
    planned = plan(Shape(**row["decoder"]), told, row["gpu_bytes"])
    assert planned.total_bytes == pytest.approx(row["read_bytes"], rel=0.05)


def test_a_reading_that_fails_is_a_row_with_its_reason_and_the_next_is_taken(tmp_path):
    """With a program in the place of LMDeploy's interpreter, which reads the engine's options as that would."""
    write_config(tmp_path / "model", CONFIG)
    (tmp_path / "engine.py").write_text(ENGINE)
    executable(tmp_path / "python-lmdeploy", f"exec {sys.executable} {tmp_path / 'engine.py'}")
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA H200, 143771, 500, GPU-0'")
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LMDEPLOY_PYTHON": str(tmp_path / "python-lmdeploy"),
    }
    command = [sys.executable, ROOT / "benchmarks" / "memory.py", tmp_path / "model", "--cache", "0.4", "0.8"]
    command += ["--out", tmp_path / "out.json"]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [(row["cache"], row["kv_bits"], row.get("reason")) for row in rows] == [
        (0.4, 16, None),
        (0.4, 8, "ended with status 1: Check failed: no kernel"),
        (0.8, 16, None),
        (0.8, 8, "ended with status 1: Check failed: no kernel"),
    ]
    assert rows[0]["max_batch"] == 1024
    assert rows[0]["read_bytes"] == int(0.4 * 143271) * 2**20
    assert Shape(**rows[0]["decoder"]).hidden == CONFIG["hidden_size"]
