"""Two variants beside each other, document by document."""

import json

import pytest
from gated import write_measured

pytest_plugins = ["fake_stores"]


def test_two_variants_are_compared_on_the_same_documents(turbopress, here):
    write_measured(here, one={"rise": 0.01, "kl": 0.01, "noise": 1.0}, two={"rise": 0.02, "kl": 0.0101, "noise": 1.0})
    status, out, _ = turbopress("compare", "one", "two")
    assert status == 0
    certain = {line.split("│")[1].strip(): line.split("│")[5].strip() for line in out.splitlines() if "│" in line}
    assert (certain["perplexity"], certain["top1_agreement"]) == ("yes", "no")
    found = json.loads(turbopress("compare", "one", "two", "--json")[1])
    assert found["perplexity"]["difference"]["value"] == pytest.approx(
        found["perplexity"]["second"]["value"] - found["perplexity"]["first"]["value"]
    )
    assert found["kl_nats"]["first"]["high"] > found["kl_nats"]["second"]["low"]  # by themselves they overlap
    assert found["kl_nats"]["certain"]  # but every document agrees which is worse


def test_variants_of_two_texts_are_not_compared(turbopress, here):
    write_measured(here, one={}, two={"evaluation": "f" * 64})
    status, out, err = turbopress("compare", "one", "two")
    assert (status, out) == (1, "")
    assert err == (
        "turbopress: one, two: were not measured on the same text; run `dvc repro` to evaluate both on one\n"
    )
    assert turbopress("compare", "one")[0] == 1
