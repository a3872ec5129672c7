"""What a machine makes of the precision that a recipe asks for."""

import pytest
import torch

from compress.distill.recipe import DistillRecipe
from compress.quantize.precision import multiplies_bfloat16
from pipelines.precision import fitted

RECIPE = DistillRecipe(steps=1, batch=1, learning_rate=0.1, warmup_steps=0, precision="bf16")


@pytest.fixture(params=[True, False], ids=["with", "without"])
def has_instructions(request, monkeypatch):
    """A processor with instructions for bfloat16, and one without."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": request.param})
    multiplies_bfloat16.cache_clear()
    yield request.param
    multiplies_bfloat16.cache_clear()


def test_a_processor_without_instructions_for_bf16_computes_in_float32_and_says_so(has_instructions, capsys):
    assert fitted(RECIPE, "cpu").precision == ("bf16" if has_instructions else "float32")
    assert ("products are in float32" in capsys.readouterr().err) is not has_instructions


def test_a_gpu_computes_in_the_precision_that_is_asked_for(has_instructions, capsys):
    assert fitted(RECIPE, "cuda:0") is RECIPE
    assert not capsys.readouterr().err


def test_what_is_asked_for_in_float32_stays_so(has_instructions):
    exact = RECIPE.model_copy(update={"precision": "float32"})
    assert fitted(exact, "cpu") is exact
