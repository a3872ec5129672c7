"""docs/formats.md says what the measured file says, and what params.yaml and the contract take."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from compress.quantize.turbomind import BLOCK, KERNELS, LEAST_INPUTS
from pipelines.variants import QuantizeVariant

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "formats.md").read_text("utf8")


@pytest.fixture
def renderer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("readme")


def test_every_measured_figure_is_the_one_in_the_files(renderer):
    assert renderer.render(PAGE, renderer.PAGES["docs/formats.md"]) == PAGE
    rows = json.loads((RESULTS / "demo_formats.json").read_text("utf8"))
    assert {"fp8", "int8 (W8A8)", "compressed-tensors, group 32"} <= {row["format"] for row in rows}
    assert f"{rows[0]['kl_nats']:.4f}" in PAGE


def test_a_proof_of_each_format_is_told_at_its_worst(renderer):
    told = renderer.readme_formats.asked()
    for file in (RESULTS / "formats").glob("*.conformance.json"):
        cases = [case for case in json.loads(file.read_text("utf8"))["cases"] if case["perplexity"]]
        assert f"{100 * min(case['top1_agreement'] for case in cases):.1f} % of positions" in told


def test_every_variant_and_budget_that_it_shows_is_taken():
    shown = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    variants, *budgets = yaml.safe_load(shown[0])["quantize"].values(), *shown[1].strip().splitlines()
    budgets = [yaml.safe_load(line.split("#")[0]) | {"from": "base"} for line in budgets]
    read = [TypeAdapter(QuantizeVariant).validate_python(raw) for raw in [*variants, *budgets]]
    assert [variant.method for variant in read] == ["awq", "fp8", "int8", "awq", "awq"]
    assert [variant.keep.by for variant in read[3:]] == ["error", "size"]


def test_the_sizes_that_it_names_are_the_contract_s():
    assert "of 64, at least 128 | of 64" in PAGE
    assert (KERNELS["compressed-tensors"].inputs, LEAST_INPUTS, KERNELS["compressed-tensors"].outputs) == (64, 128, 64)
    assert f"| fp8 | of {BLOCK} | of {BLOCK} |" in PAGE
    assert KERNELS["compressed-tensors"].group_sizes == (32, 128)
