"""The benchmark of the training's speed runs where there is no GPU and counts what a training costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "distill_speed.py"


def test_the_benchmark_writes_a_row_of_a_tiny_shape(tmp_path):
    flags = ["--shape", "tiny", "--steps", "3", "--length", "32", "--out", str(tmp_path / "rows.json")]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *flags], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "rows.json").read_text("utf8"))
    assert row["student_layers"] == 3
    assert row["tokens_per_s"] == pytest.approx(4 * 32 / row["step_s"])
    # By hand: of a layer 2·(q, o 64·64 + k, v 64·64/2 + 3·64·128), of the head 2·1000·64, attention 2·32·64 a layer.
    layer, head, attention = 2 * (3 * 64 * 64 + 3 * 64 * 128), 2 * 1000 * 64, 2 * 32 * 64
    a_token = 3 * (3 * (layer + attention) + head) + (4 * (layer + attention) + head)
    assert row["flops_per_s_per_device"] == pytest.approx(a_token * row["tokens_per_s"])
