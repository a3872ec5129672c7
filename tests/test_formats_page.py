"""docs/formats.md says what the measured file says, and what params.yaml and the contract take."""

import importlib.util
import json
import re
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from compress.quantize.turbomind import BLOCK, KERNELS, LEAST_INPUTS
from pipelines.variants import QuantizeVariant

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text("utf8")


def test_every_measured_figure_is_the_one_in_the_file():
    place = ROOT / "benchmarks" / "demo_formats.py"
    spec = importlib.util.spec_from_file_location("demo_formats", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = json.loads(module.RESULT.read_text("utf8"))
    assert {"fp8", "int8 (W8A8)", "compressed-tensors, group 32"} <= {row["format"] for row in rows}
    assert module.render(PAGE, rows) == PAGE
    assert f"{rows[0]['kl_nats']:.4f}" in PAGE


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
