"""The gate is a pure function: what is worse than a limit, or cannot be known to keep it, does not pass."""

from dataclasses import replace

import pytest
from fake_measured import measured, proof, speed

from pipelines.gate import judge
from pipelines.limits import Gate, Limit, Proof
from pipelines.measured import Measured

BASE = measured("base", size_bytes=1000, kl=0.0, rise=0.0, top1=1.0)


def verdict(candidate, champion=None, base=BASE, **limits):
    return judge(Gate(**{k: Limit(**v) for k, v in limits.items()}), candidate, {"base": base, "champion": champion})


@pytest.mark.parametrize(
    ("limit", "keeps", "breaks"),
    [
        ("most_kl_nats", 0.011, 0.009),
        ("most_perplexity_rise", 0.021, 0.019),
        ("least_top1_agreement", 0.94, 0.96),
        ("most_size_ratio", 0.51, 0.49),
    ],
)
def test_each_limit_against_the_base_is_kept_and_broken_where_it_should(limit, keeps, breaks):
    assert verdict(measured(), **{limit: {"limit": keeps}}).passed
    assert not verdict(measured(), **{limit: {"limit": breaks}}).passed


@pytest.mark.parametrize(
    ("limit", "better", "worse", "bound"),
    [
        ("most_kl_nats", {"kl": 0.009}, {"kl": 0.011}, 0),
        ("most_perplexity_rise", {"rise": 0.01}, {"rise": 0.03}, 0),
        ("least_top1_agreement", {"top1": 0.96}, {"top1": 0.94}, 0),
        ("most_size_ratio", {"size_bytes": 499}, {"size_bytes": 501}, 1),
    ],
)
def test_each_limit_against_the_champion_asks_for_nothing_worse(limit, better, worse, bound):
    asked = {limit: {"limit": bound, "against": "champion"}}
    champion = measured("champion v1")
    assert verdict(measured(**better), champion, **asked).passed
    assert verdict(measured(), champion, **asked).passed
    rejected = verdict(measured(**worse), champion, **asked)
    assert not rejected.passed
    assert "against champion v1" in str(rejected)


def test_the_worse_end_of_the_interval_must_keep_the_limit():
    unsure = measured(kl=0.01, noise=1.0)
    (finding,) = verdict(unsure, most_kl_nats={"limit": 0.0105}).findings
    assert not finding.passed
    assert "(95 %: 0.00" in finding.words
    assert verdict(measured(kl=0.01, noise=0.001), most_kl_nats={"limit": 0.0105}).passed


def test_a_difference_that_two_intervals_cannot_show_is_shown_by_pairs():
    """Documents differ by far more than the variants do, and alike for both."""
    champion = measured("champion v1", rise=0.020)
    assert verdict(measured(rise=0.019), champion, most_perplexity_rise={"limit": 0, "against": "champion"}).passed
    assert not verdict(measured(rise=0.021), champion, most_perplexity_rise={"limit": 0, "against": "champion"}).passed


def test_the_verdict_says_in_words_what_was_found_and_asked():
    said = str(verdict(measured(), most_kl_nats={"limit": 0.02}, most_size_ratio={"limit": 0.4}))
    assert said.splitlines()[0] == "awq-w4: is rejected"
    assert "passes  most_kl_nats: KL in nats a token against base is 0.0100" in said
    assert "FAILS   most_size_ratio: the size as a share against base is 50.0 %; at most 40.0 % asked" in said


def test_a_gate_that_asks_nothing_passes_and_says_so():
    assert verdict(measured()).passed
    assert "asks nothing" in str(verdict(measured()))


def test_without_a_champion_there_is_nothing_to_be_held_against():
    (finding,) = verdict(measured(), most_kl_nats={"limit": 0, "against": "champion"}).findings
    assert finding.passed
    assert "no champion" in finding.words


def test_what_was_measured_on_other_text_or_not_at_all_does_not_pass():
    asked = {"most_kl_nats": {"limit": 9, "against": "champion"}}
    other = verdict(measured(), measured("champion v1", evaluation="f" * 64), **asked)
    assert not other.passed
    assert "not measured on the same text" in str(other)
    old = Measured("awq-w4", {"metrics": {"size_bytes": 1}}, None)
    assert not verdict(old, most_kl_nats={"limit": 9}).passed
    assert not verdict(measured(), base=None, most_size_ratio={"limit": 9}).passed


def test_speed_is_judged_at_its_worst_batch_and_the_slow_end_of_both():
    asked = {"least_speed_ratio": {"limit": 0.95, "against": "champion"}}
    champion = measured("champion v1", timed=speed(100))
    assert verdict(measured(timed=speed(100)), champion, **asked).passed  # 0.98 / 1.02 = 0.961
    assert not verdict(measured(timed=speed(98)), champion, **asked).passed
    one_slow = speed(100)
    one_slow["batches"]["8"] = speed(50)["batches"]["8"]
    assert not verdict(measured(timed=one_slow), champion, **asked).passed


def test_speeds_of_two_engines_or_machines_are_never_mixed():
    asked = {"least_speed_ratio": {"limit": 0, "against": "champion"}}
    champion = measured("champion v1", timed=speed())
    for other in (speed(engine="lmdeploy"), speed(machine="gpu")):
        rejected = verdict(measured(timed=other), champion, **asked)
        assert not rejected.passed
        assert "time both on one" in str(rejected)
    assert "was not measured" in str(verdict(measured(), champion, **asked))


def test_equal_reports_give_equal_verdicts():
    asked = {"most_kl_nats": {"limit": 0.01}}
    assert verdict(measured(noise=0.5), **asked) == verdict(measured(noise=0.5), **asked)


# --- the proof in the engine

DEMANDED = Gate(proof=Proof(kv=[16, 8], tp=[1], layouts=["llama", "internlm2"]))
WAYS = [(layout, bits, 1) for layout in ("llama", "internlm2") for bits in (16, 8)]
REMEDY = "run on a GPU: turbopress conformance awq-w4 --kv 16,8 --tp 1 --layout llama,internlm2"


def proven(content, artifact="a" * 64):
    (finding,) = judge(DEMANDED, replace(measured(), artifact=artifact, proof=content), {}).findings
    assert finding.limit == "proof"
    return finding.passed, finding.words


def test_a_proof_of_every_way_that_is_asked_for_passes():
    assert proven(proof("a" * 64, WAYS)) == (True, "the engine agrees in all 4 ways that are asked for")


def test_an_artifact_that_no_engine_was_asked_about_does_not_pass():
    passed, words = proven(None)
    assert not passed
    assert words.startswith(f"there is no proof in the engine; {REMEDY}")


def test_the_proof_of_other_bytes_does_not_pass():
    passed, words = proven(proof("b" * 64, WAYS))
    assert not passed
    assert words.startswith(f"the proof is of artifact bbbbbbbbbbbb, not of aaaaaaaaaaaa; {REMEDY}")
    assert not proven(proof("b" * 64, WAYS), artifact=None)[0]


def test_a_way_in_which_the_engine_disagrees_does_not_pass_and_one_that_nobody_asks_for_may():
    passed, words = proven(proof("a" * 64, WAYS, failed=[("internlm2", 8, 1)]))
    assert not passed
    assert words.startswith("the engine disagrees on layout internlm2, KV 8, tp 1 (top-1 agreement 98.50 %)")
    assert proven(proof("a" * 64, WAYS, failed=[("llama", 4, 1), ("llama", 16, 2)]))[0]


def test_a_proof_of_fewer_ways_does_not_pass_and_says_which_are_left():
    content = proof("a" * 64, WAYS[:3]) | {"refused": ["quant_policy 8 is no use"]}
    passed, words = proven(content)
    assert not passed
    said = "the proof is silent on layout internlm2, KV 8, tp 1 (left out: quant_policy 8 is no use)"
    assert words.startswith(f"{said}; {REMEDY}")


def test_what_is_no_proof_at_all_does_not_pass():
    assert proven({})[1].startswith("the proof cannot be read (artifact: Field required)")


def test_a_gate_that_demands_no_proof_does_not_look_for_one():
    assert judge(Gate(), replace(measured(), proof={}), {}).passed
