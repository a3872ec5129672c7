"""The benchmark of pruning and distillation goes through every stage, on a model whose figures mean nothing."""

import importlib
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
            assert row["recovered_kl_low"] <= row["recovered_kl"] <= row["recovered_kl_high"]
            assert row["recovered_kl"] == pytest.approx(
                1 - row["kl_nats"] / by_name["pruned", row["domain"]]["kl_nats"], abs=1e-5
            )
    costs = [by_name[stage, "all"]["kl_nats"] for stage in ("distilled-w4", "distilled", "base-w4")]
    extra = by_name["distilled-w4", "all"]
    assert extra["extra_kl_nats"] == pytest.approx(costs[0] - costs[1] - costs[2], abs=1e-6)
    assert extra["extra_nll_nats_low"] <= extra["extra_nll_nats"] <= extra["extra_nll_nats_high"]
    for name in ("repetition", "sampled_repetition"):
        assert all(0 <= row[name] <= 1 for row in rows if row["domain"] == "written")
    assert by_name["base", "written"]["sampled_nll_rise_nats"] == 0  # its own text beside itself
    assert by_name["pruned", "written"]["sampled_nll_rise_nats"] != 0
    assert json.loads(by_name["pruned", "a"]["recipe"])["remove_layers"] == 1
    assert json.loads(by_name["distilled", "a"]["recipe"])["steps"] == 2
    assert by_name["distilled", "a"]["text"].startswith("sotu+shakespeare+own: 10 windows of 64, sha256 ")
    assert by_name["base", "a"]["recipe"] is by_name["base", "a"]["text"] is None


def test_the_base_has_won_all_back_and_the_pruned_model_nothing():
    from won_back import recovered

    from compress.evaluate.compare import WindowScores

    generator = torch.Generator().manual_seed(0)
    base = torch.rand(8, generator=generator)
    pruned = base + 1 + torch.rand(8, generator=generator)
    before = WindowScores(pruned, base, pruned, base)
    assert set(recovered(before, WindowScores(base, base, 0 * base, base)).values()) == {1.0}
    assert set(recovered(before, before).values()) == {0.0}


def test_a_student_whose_quantization_costs_what_the_base_s_did_costs_nothing_more():
    from won_back import quantization_extra

    from compress.evaluate.compare import WindowScores

    generator = torch.Generator().manual_seed(0)
    base, lost, rounded = (torch.rand(8, generator=generator) for _ in range(3))
    student = WindowScores(base + lost, base, lost, base)
    base_w4 = WindowScores(base + rounded, base, rounded, base)
    same = WindowScores(base + lost + rounded, base, lost + rounded, base)
    assert all(abs(value) < 1e-6 for value in quantization_extra(student, same, base_w4).values())
    worse = WindowScores(base + lost + rounded + 0.5, base, lost + rounded + 0.25, base)
    assert quantization_extra(student, worse, base_w4)["extra_nll_nats"] == pytest.approx(0.5)
    assert quantization_extra(student, worse, base_w4)["extra_kl_nats_low"] == pytest.approx(0.25)


# --- what the stored figures must hold


def stored():
    return json.loads((ROOT / "benchmarks" / "results" / "prune_distill.json").read_text())


def the(*wanted):
    """The row of a model, way, stage and domain."""
    (row,) = (row for row in stored() if (row["model"], row["way"], row["stage"], row["domain"]) == wanted)
    return row


def demo_kl(stage):
    """Of the demo base, two layers of which were left out: by the benchmark, on all held-out windows."""
    return the("demo base", "depth", stage, "all")["kl_nats"]


def test_rows_are_flat_and_have_all_the_same_columns():
    from prune_distill import COLUMNS

    for row in stored():
        assert tuple(row) == COLUMNS
        assert not any(isinstance(value, dict | list) for value in row.values())


def test_ten_minutes_win_back_seven_tenths_of_the_perplexity_that_a_quarter_of_smollm2_was_worth():
    base, pruned, student = (
        the("SmolLM2-135M", "width", stage, "wikitext2") for stage in ("base", "pruned", "distilled")
    )
    gaps = [row["perplexity"] - base["perplexity"] for row in (student, pruned)]
    assert 1 - gaps[0] / gaps[1] == pytest.approx(student["recovered"], abs=1e-4)
    assert student["recovered"] >= 0.70
    assert student["elapsed_s"] <= 600
    assert student["parameters"] <= 0.75 * base["parameters"]


def reported_kl(variant):
    return json.loads((ROOT / "reports" / f"{variant}.json").read_text())["metrics"]["kl_nats"]


def test_distillation_wins_back_three_fifths_of_the_kl_that_depth_pruning_cost_the_demo():
    assert 1 - demo_kl("distilled") / demo_kl("pruned") >= 0.60
    assert 1 - reported_kl("student") / reported_kl("shallow") >= 0.60


def test_quantization_costs_the_demo_s_student_no_more_than_its_base():
    assert demo_kl("distilled-w4") - demo_kl("distilled") <= demo_kl("base-w4")
    assert reported_kl("student-awq-w4") - reported_kl("student") <= reported_kl("awq-w4")


def test_the_longest_training_is_the_one_that_the_readme_quotes(monkeypatch, tmp_path):
    import readme_distilled

    about = {"model": "SmolLM2-135M", "stage": "distilled", "domain": "wikitext2"}
    rows = [about | {"way": way, "tokens": n * 10**6, "elapsed_s": n * 10} for way, n in (("a", 3), ("b", 7), ("c", 5))]
    (tmp_path / "rows").write_text(json.dumps(rows))
    (tmp_path / "own_words.json").write_text(json.dumps([{"windows": 2000, "elapsed_s": 9.6, "alone": True}]))
    monkeypatch.setattr(readme_distilled, "RESULTS", tmp_path / "rows")
    said = readme_distilled.taught()
    assert said.startswith("70 seconds on 7 million tokens of ")
    assert said.endswith(" 2,000 windows in its base's own words, written beforehand in 10 s")


def test_pruning_a_shape_is_measured_from_disk_to_disk_and_leaves_nothing_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed, random = (importlib.import_module(name) for name in ("prune_speed", "random_model"))
    monkeypatch.setitem(random.SHAPES, "tiny", (256, 512, 4, 2, 2))
    for module in (speed, random):
        monkeypatch.setattr(module, "VOCAB", 512)
    told = ["--shapes", "tiny", "--windows", "2", "--length", "32", "--disk", tmp_path, "--out", tmp_path / "rows"]
    monkeypatch.setattr(sys, "argv", ["prune_speed.py", *map(str, told)])
    speed.main()
    wide, deep = json.loads((tmp_path / "rows").read_text())
    assert (wide["way"], deep["way"]) == ("feed-forward", "depth")
    assert (wide["share"], deep["share"]) == (pytest.approx(2 / 3), 0.5)
    assert wide["peak_host_gib"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["rows"]
