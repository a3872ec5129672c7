"""The benchmark of repair runs from model and windows to rows, on a model so small that the figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from benchmark_windows import write_windows
from tiny import CONFIG, write_internlm2

ROOT = Path(__file__).parent.parent


def test_a_row_a_recipe_and_domain_with_its_interval(tmp_path):
    write_internlm2(tmp_path / "model", CONFIG | {"num_hidden_layers": 1})
    write_windows(tmp_path / "held-out.safetensors", 16, calibration=4, a=3, b=4)
    write_windows(tmp_path / "training.safetensors", 16, **dict.fromkeys("vwxyz", 2), prose=6)
    recipes = [
        "scales:steps=2,learning_rate=0.001,batch=2",
        "codes:steps=2,learning_rate=0.001,rate=9,batch=2,text=prose+v*2",
    ]
    program = [sys.executable, "benchmarks/qad.py", *recipes, "--model", tmp_path / "model", "--out", tmp_path / "rows"]
    program += ["--windows", tmp_path / "held-out.safetensors", "--training", tmp_path / "training.safetensors"]
    ran = subprocess.run([str(part) for part in program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "rows").read_text())
    assert [(row["recipe"], row["domain"]) for row in rows] == [(r, d) for r in recipes for d in ("a", "b", "all")]
    assert all(row["closed_low"] <= row["closed"] <= row["closed_high"] for row in rows)
    assert {row["tokens"] for row in rows} == {2 * 2 * 16}
    a, b, both = (row["kl_after_nats"] for row in rows[:3])
    assert np.isclose(both, (3 * a + 4 * b) / 7)
    assert [row["windows"] is None for row in rows] == [False, False, True] * 2


def test_repair_closes_at_least_half_of_what_the_default_recipe_lost_of_smollm2():
    rows = json.loads((ROOT / "benchmarks" / "results" / "qad.json").read_text())
    best = max((row for row in rows if row["domain"] == "all"), key=lambda row: row["closed"])
    assert 1 - best["kl_after_nats"] / best["kl_before_nats"] >= 0.50
