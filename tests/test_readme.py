"""The page that a newcomer reads says what the files say, and names what is there."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from artifact import of_other_bytes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf8")


def renderer():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_is_the_one_in_the_measured_files():
    module = renderer()
    assert set(module.SECTIONS) == set(re.findall(r"<!-- (\w+)", README)) - {"end"}
    assert module.render(README) == README


def test_the_table_has_a_row_for_every_variant_of_params_yaml():
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf8"))
    keys = ["base", *params["prune"], *params["distill"], *params["quantize"]]
    rows = [line.split("|")[1].strip() for line in README.splitlines() if line.startswith("| ")]
    assert all(key in rows for key in keys)


def test_every_link_and_picture_is_in_the_repository():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_link_and_picture_of_the_pages_about_serving_is_there():
    page = ROOT / "docs" / "serving.md"
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text("utf8"))
    assert {"chat.png", "memory.png"} <= set(links)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_command_it_shows_exists_with_these_options():
    shown = re.findall(r"^turbopress ((?:vision )?\w+)([^#\n]*)", README, re.MULTILINE)
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {name for name, _ in shown} == verbs | {"vision take", "vision give"}
    for name, arguments in shown:
        text = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        options = re.findall(r"--[a-z-]+", arguments)
        assert [option for option in options if option not in text] == []


def rows_of(name):
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf8"))
    return found["models"] if isinstance(found, dict) else found


@pytest.mark.parametrize("name", ["gguf", "serving"])
def test_what_was_measured_on_a_gpu_or_through_another_engine_is_of_the_artifacts_that_the_table_shows(name):
    stale = of_other_bytes(rows_of(name), ROOT / "reports")
    assert stale == [], f"benchmarks/results/{name}.json: measure {', '.join(stale)} again"


def test_a_row_of_other_bytes_than_the_report_s_is_named(tmp_path):
    (tmp_path / "base.json").write_text('{"artifact": "abc"}')
    rows = [{"model": "base", "artifact": "abc"}, {"model": "random"}, {"model": "mine", "artifact": "def"}]
    assert of_other_bytes(rows, tmp_path) == []
    assert of_other_bytes([*rows, {"model": "base"}], tmp_path) == ["base"]
    assert of_other_bytes([*rows, {"model": "base", "artifact": "def"}], tmp_path) == ["base"]


def test_a_way_in_which_the_engine_disagreed_is_counted_not_dropped(tmp_path):
    case = {"perplexity": 2.0, "engine_perplexity": 2.0, "top1_agreement": 1.0, "kv_bits": 16, "passed": True}
    told = {"kl_nats": 2e-5, "greedy_margin": 0.25}
    failed = {"perplexity": None, "kv_bits": 8, "tp": 2, "passed": False}
    file, agreed = tmp_path / "base.conformance.json", renderer().readme_engine._agreed
    file.write_text(json.dumps({"cases": [case | {"tp": 1}, case | {"tp": 2}]}))
    assert agreed([file]).startswith("in all 2 cases (models: 1, GPUs: 1 and 2, KV cache: 16 bits) its perplexity")
    assert "KL" not in agreed([file])
    file.write_text(json.dumps({"cases": [case | told | {"tp": 1}, failed]}))
    said = agreed([file])
    assert said.startswith("in 1 of 2 cases (models: 1, GPUs: 1, KV cache: 16 bits)")
    assert "its KL from ours at most 2.0e-05 nats a token" in said
    assert said.endswith("our scores of the two tokens are within 0.25")
    apart = {"perplexity": 2.0, "engine_perplexity": 2.002, "top1_agreement": 0.955, "kv_bits": 4, "passed": False}
    apart |= {"tp": 1, "kl_to_16_nats": 0.0216, "simulated_kl_to_16_nats": 0.0227}
    file.write_text(json.dumps({"cases": [case | told | {"tp": 1}, apart]}))
    said = agreed([file])
    assert "With a KV cache of 4 bits the proof fails: perplexity is ours to 0.10 %" in said
    assert "only 95.5 % of positions" in said
    assert "costs 0.0216 nats in the engine, 0.0227 by our simulation" in said
    file.write_text(json.dumps({"cases": [failed]}))
    assert agreed([file]) == "it agreed in none of 1 cases"
