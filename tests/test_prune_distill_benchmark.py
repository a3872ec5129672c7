"""The benchmark of pruning and distillation goes through every stage, on a model whose figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_windows import write_windows
from tiny import CONFIG, write_internlm2

ROOT = Path(__file__).parent.parent
STAGES = ["base", "pruned", "distilled", "base-w4", "distilled-w4", "distilled-w4-repaired"]


def run(*program):
    command = [sys.executable, *map(str, program)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_row_a_stage_and_domain_and_what_is_won_back_with_its_interval(tmp_path):
    write_internlm2(tmp_path / "model", CONFIG | {"num_hidden_layers": 2})
    write_windows(tmp_path / "held-out.safetensors", 64, calibration=4, a=3, b=4)
    write_windows(tmp_path / "training.safetensors", 64, sotu=4, shakespeare=4)
    short = '{"steps": 2, "batch": 2, "warmup_steps": 0, "evaluate": null}'
    own = tmp_path / "own.safetensors"
    run("benchmarks/own_words.py", tmp_path / "model", tmp_path / "training.safetensors", own, "--windows", 2)
    run(
        "benchmarks/prune_distill.py", "smollm2", "--model", tmp_path / "model",
        "--windows", tmp_path / "held-out.safetensors", "--training", tmp_path / "training.safetensors",
        own, "--text", "sotu+shakespeare+own", "--prune", '{"method": "depth", "remove_layers": 1}',
        "--distill", short, "--repair", short,
        "--out", tmp_path / "rows",
    )  # fmt: skip
    rows = json.loads((tmp_path / "rows").read_text())
    domains = ("a", "b", "all", "written")
    assert [(row["stage"], row["domain"]) for row in rows] == [(s, d) for s in STAGES for d in domains]
    by_name = {(row["stage"], row["domain"]): row for row in rows}
    assert by_name["base", "all"]["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert by_name["pruned", "all"]["parameters"] < by_name["base", "all"]["parameters"]
    for row in rows:
        if row["stage"].startswith("distilled") and row["domain"] != "written":
            assert row["recovered_low"] <= row["recovered"] <= row["recovered_high"]
    assert 0 <= by_name["base", "written"]["repetition"] <= 1


def test_the_base_has_won_all_back_and_the_pruned_model_nothing():
    from prune_distill import recovered

    from compress.evaluate.compare import WindowScores

    generator = torch.Generator().manual_seed(0)
    base = torch.rand(8, generator=generator)
    pruned = base + 1 + torch.rand(8, generator=generator)
    before = WindowScores(pruned, base, pruned, base)
    assert set(recovered(before, WindowScores(base, base, base, base)).values()) == {1.0}
    assert set(recovered(before, before).values()) == {0.0}
