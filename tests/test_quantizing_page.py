"""docs/quantizing.md says of every ingredient what the measured file says, and no more."""

import importlib
import json

import pytest
from house import ROOT

PAGE = (ROOT / "docs" / "quantizing.md").read_text("utf8")
ROWS = json.loads((ROOT / "benchmarks" / "results" / "quantizer_ablation.json").read_text("utf8"))


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def changes(recipe, domain):
    return [row["kl_above_whole"] for row in ROWS if (row["recipe"], row["domain"]) == (recipe, domain)]


def test_every_figure_is_the_one_in_the_file(benchmark):
    module = benchmark("readme")
    assert module.render(PAGE, module.PAGES["docs/quantizing.md"]) == PAGE


def test_each_ingredient_has_three_draws_in_each_domain(benchmark):
    variants, domains = benchmark("quantizer_ablation").VARIANTS, {row["domain"] for row in ROWS}
    assert domains == {"sotu", "wikitext2", "code"}
    for recipe in variants:
        assert all(len(changes(recipe, domain)) == 3 for domain in domains)


@pytest.mark.parametrize("recipe", ["no feedback", "no compensation", "no refinement", "no clipping"])
@pytest.mark.parametrize("domain", ["sotu", "wikitext2"])
def test_what_is_said_to_pay_pays_in_every_draw(recipe, domain):
    assert min(changes(recipe, domain)) > 0


def test_what_is_said_of_scales_damping_and_learning_is_so():
    assert (
        min(changes("no scales", "sotu")) > 0 > max(*changes("no scales", "wikitext2"), *changes("no scales", "code"))
    )
    assert max(changes("less damping", "sotu")) < 0
    assert min(*changes("less damping", "wikitext2"), *changes("less damping", "code")) > 0
    assert max(*changes("and learned rounding", "sotu"), *changes("and learned rounding", "wikitext2")) < 0
