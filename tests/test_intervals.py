"""Scores of every token are those of dense logits; an interval holds the truth as often as it says."""

import numpy as np
import pytest
import torch
from tiny import windows, write_internlm2

from compress.checkpoint.load import load_model
from compress.corpus import Windows
from compress.evaluate import tokens as scoring
from compress.evaluate.compare import compare_models
from compress.evaluate.intervals import METRICS, bootstrap, kl_nats, perplexity, top1_agreement
from compress.evaluate.tokens import LiveReference, TokenScores, by_document, score_tokens
from pipelines.measured import Measured
from pipelines.scores import documents_json, measure, strata, unit


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    write_internlm2(folder)
    base, variant = load_model(folder), load_model(folder)
    for parameter in variant.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 16
    return variant, base


def scores_of(models, tokens, **options):
    variant, base = models
    return score_tokens(variant, LiveReference(base), tokens, **options)


def kl_scores(kl):
    """Scores of windows of which only the divergence counts."""
    zeros = torch.zeros_like(kl)
    return TokenScores(zeros, zeros, kl, zeros, zeros)


def test_token_scores_add_up_to_the_windows_of_the_dense_computation(models):
    tokens = windows(5, 17)
    scores, dense = scores_of(models, tokens), compare_models(*models, tokens)
    assert torch.allclose(scores.kl_nats.mean(1), dense.kl_nats, atol=1e-6)
    assert torch.allclose(scores.top1.mean(1), dense.top1)
    for name in ("nll_nats", "base_nll_nats"):
        assert torch.allclose(getattr(scores, name).sum(1) / 16, getattr(dense, name), rtol=1e-5)
        assert (getattr(scores, name)[:, -1] == 0).all()


def test_top5_is_the_share_of_the_base_s_five_likeliest_tokens(models):
    tokens = windows(2, 9)
    variant, base = models
    with torch.no_grad():
        ours, theirs = (model(tokens).logits.topk(5).indices.tolist() for model in (variant, base))
    by_hand = [
        [len(set(o) & set(t)) / 5 for o, t in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)
    ]
    assert torch.allclose(scores_of(models, tokens).top5, torch.tensor(by_hand))
    assert 0 < np.mean(by_hand) < 1


@pytest.mark.parametrize("at_once", [1, 512 * 3, 2**24])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_token_scores_depend_neither_on_the_slice_nor_on_the_batch(models, monkeypatch, at_once, batch):
    expected = scores_of(models, windows(5, 17))
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
    found = scores_of(models, windows(5, 17), batch=batch)
    for name in ("nll_nats", "base_nll_nats", "kl_nats", "top1", "top5"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-5), name


def test_sums_of_documents_are_those_added_by_hand():
    kl = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    sums = by_document(kl_scores(kl), np.array([[7, 7, 3], [3, 3, 9]]))
    assert sums.units.tolist() == [3, 7, 9]
    assert sums.columns["kl_nats"].tolist() == [28.0, 3.0, 32.0]
    assert sums.columns["tokens"].tolist() == [3, 2, 1]
    assert sums.columns["predicted"].tolist() == [2, 2, 0]


def test_of_some_positions_only_those_count():
    kl = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    sums = by_document(kl_scores(kl), np.array([[0, 0], [0, 5]]), np.array([[True, False], [True, False]]))
    assert sums.units.tolist() == [0]
    assert sums.columns["kl_nats"].tolist() == [5.0]


def test_a_metric_s_value_is_over_all_tokens_and_lies_in_its_interval(models):
    scores = scores_of(models, windows(30, 16))
    sums = by_document(scores, None).columns
    for name, statistic in METRICS.items():
        interval = bootstrap(statistic, sums)
        assert interval.low < interval.value < interval.high, name
    assert bootstrap(kl_nats, sums).value == pytest.approx(scores.kl_nats.mean().item(), rel=1e-5)
    nll = scores.nll_nats[:, :-1].mean().item()
    assert bootstrap(perplexity, sums).value == pytest.approx(np.exp(nll), rel=1e-5)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    held = 0
    for trial in range(200):
        hard = generator.gamma(4, 0.25, 60)  # a document's own mean, 1 in expectation
        sums = {"kl_nats": hard * 50 + generator.normal(0, 1, 60), "tokens": np.full(60, 50.0)}
        interval = bootstrap(kl_nats, sums, draws=400, seed=trial)
        held += interval.low <= 1 <= interval.high
    assert 178 <= held <= 199  # 95 % of 200 is 190; a bootstrap of 60 is a little narrow


def test_an_interval_over_documents_is_wider_than_one_over_windows_of_the_same_text():
    generator = np.random.default_rng(0)
    owners = np.repeat(np.arange(20), 10)[:, None].repeat(8, 1)  # ten windows of each document
    kl = torch.tensor(generator.gamma(2, 1, 20)[owners] + generator.normal(0, 0.1, owners.shape), dtype=torch.float32)
    over_documents = bootstrap(kl_nats, by_document(kl_scores(kl), owners).columns)
    over_windows = bootstrap(kl_nats, by_document(kl_scores(kl), None).columns)
    assert over_documents.value == pytest.approx(over_windows.value)
    assert over_documents.high - over_documents.low > 2 * (over_windows.high - over_windows.low)


def test_a_paired_difference_is_sharper_than_two_intervals():
    generator = np.random.default_rng(0)
    hard = generator.gamma(2, 1, 40)
    tokens = np.full(40, 100.0)
    one = {"kl_nats": 100 * hard, "tokens": tokens}
    two = {"kl_nats": 100 * (hard * 1.1 + generator.normal(0, 0.01, 40)), "tokens": tokens}
    apart = [bootstrap(kl_nats, sums) for sums in (one, two)]
    difference = bootstrap(lambda a, b: kl_nats(b) - kl_nats(a), one, two)
    assert apart[0].high > apart[1].low  # by themselves nothing can be said
    assert difference.low > 0
    assert difference.value == pytest.approx(apart[1].value - apart[0].value)


def test_equal_inputs_give_equal_intervals():
    sums = {"top1": np.arange(10.0), "tokens": np.full(10, 20.0)}
    assert bootstrap(top1_agreement, sums) == bootstrap(top1_agreement, sums)


# --- as the report has it


def made_windows(documents):
    tokens = windows(10, 80).numpy().astype("int32")
    return Windows(tokens, ["story"] * 6 + ["chat"] * 4, documents)


def test_few_documents_give_way_to_windows(models):
    many = np.arange(10, dtype=np.int32)[:, None].repeat(80, 1)
    assert unit(made_windows(many)) == "document"
    assert unit(made_windows(many // 5)) == unit(made_windows(None)) == "window"


def test_strata_are_by_domain_and_by_position_and_add_up(models):
    given = made_windows(None)
    scores = scores_of(models, torch.from_numpy(given.tokens).long())
    found, (whole, _) = strata(scores, given), measure(scores, given)
    assert list(found["domains"]) == ["chat", "story"]
    assert list(found["positions"]) == ["0-63", "64-79"]
    story, chat = (found["domains"][name]["kl_nats"] for name in ("story", "chat"))
    assert 0.6 * story + 0.4 * chat == pytest.approx(whole["kl_nats"], rel=1e-5)
    early, late = (found["positions"][name]["kl_nats"] for name in ("0-63", "64-79"))
    assert 0.8 * early + 0.2 * late == pytest.approx(whole["kl_nats"], rel=1e-5)


def test_documents_can_be_compared_when_they_are_of_the_same_tokens(models):
    given = made_windows(None)
    scores = scores_of(models, torch.from_numpy(given.tokens).long())
    one = Measured("one", {}, documents_json(scores, given))
    other = Measured("other", {}, {**documents_json(scores, given), "evaluation": "0" * 64})
    assert one.is_on_same_text(one)
    assert not one.is_on_same_text(other)
    assert not one.is_on_same_text(Measured("old", {}, None))
