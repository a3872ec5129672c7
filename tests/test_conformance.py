"""The proof in the engine: what passes and what does not, what a gate reads, and the real engine, emulated."""

import contextlib
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lmdeploy_environment import PROGRAM, emulated, server_interpreter
from stand_in_lmdeploy import stand_in
from tiny_repository import make_repository

import pipelines.proof as proof_module
from compress.checkpoint.load import load_model
from compress.corpus import Windows, save_windows
from pipelines.proof import FINE_KV, MARGIN, PERPLEXITY, TOP1, judged
from pipelines.proof_engine import engine_numbers
from pipelines.proof_ours import Numbers, Ours, our_numbers, what_is_asked
from registry.conformance import SUFFIX, Case, Conformance, Way, merged, read_proof
from registry.manifest import verify

ROOT = Path(__file__).parents[1]
PROOFS = sorted([*(ROOT / "reports").glob(f"*{SUFFIX}"), *(ROOT / "benchmarks" / "results").rglob(f"*{SUFFIX}")])
WINDOWS = Windows(np.random.default_rng(0).integers(5, 500, (4, 24), dtype=np.int32), ["words"] * 4)
TOKENS = torch.from_numpy(WINDOWS.tokens).long()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("repository"))
    (root / "data").mkdir()
    save_windows(WINDOWS, root / "data")
    return root


def likeliest(*texts):
    """Scores among which these tokens are the likeliest, a text after another."""
    return [np.eye(VOCAB, dtype=np.float32)[list(tokens)] for tokens in texts]


NUM_STEPS, VOCAB = 32, 16
OURS = Ours([2.0, 3.0], [[5] * NUM_STEPS], likeliest([1] * 100, [2] * 100), likeliest([5] * NUM_STEPS))
EIGHT = Way("llama", 8, 1)


def verdict(theirs, whole=OURS):
    return judged(OURS, theirs, whole, EIGHT)


def test_equal_numbers_pass():
    case = verdict(OURS)
    assert (case.passed, case.reason, case.top1_agreement, case.greedy_agreement) == (True, "", 1.0, 1.0)
    assert case.perplexity == case.engine_perplexity == pytest.approx(math.exp(2.5))
    assert (case.way, case.greedy_margin) == (EIGHT, 0.0)
    assert abs(case.kl_nats) < 1e-7


def test_perplexity_beyond_half_a_percent_fails():
    assert verdict(replace(OURS, nll_nats=[2.004, 3.004])).passed
    case = verdict(replace(OURS, nll_nats=[2.006, 3.006]))
    assert not case.passed
    assert case.reason.startswith("perplexity 12.25")


def test_a_nan_fails():
    assert not verdict(replace(OURS, nll_nats=[math.nan, 3.0])).passed


def test_fewer_than_99_of_100_tokens_fail():
    two, three = (likeliest([1] * (100 - n) + [0] * n, [2] * 100) for n in (2, 3))
    assert verdict(replace(OURS, logits=two)).passed
    case = verdict(replace(OURS, logits=three))
    assert (case.passed, case.reason) == (False, "top-1 agreement 98.50 %")


def test_divergence_is_from_ours_to_the_engine_s_and_from_our_whole_cache_beside_it():
    """A token that the engine scores by 1 less than we do, at every place, and by 2 less than our 16-bit cache does."""
    theirs = replace(OURS, logits=[0 * x for x in OURS.logits])
    whole = replace(OURS, logits=[2 * x for x in OURS.logits])
    case = verdict(theirs, whole)

    def kl(lead, other):
        """From scores of `lead` for one token and 0 for the others to those of `other`."""
        whole, others = (math.exp(score) + VOCAB - 1 for score in (lead, other))
        return math.exp(lead) / whole * (lead - other) - math.log(whole / others)

    assert case.kl_nats == pytest.approx(kl(1, 0), abs=1e-6)
    assert case.kl_to_16_nats == pytest.approx(kl(2, 0), abs=1e-6)
    assert case.simulated_kl_to_16_nats == pytest.approx(kl(2, 1), abs=1e-6)


def test_where_texts_first_differ_our_lead_over_the_engine_s_token_is_told_and_no_later_one():
    steps = OURS.steps[0].copy()
    steps[3, 7], steps[9, 8] = 0.75, -5.0
    ours = replace(OURS, steps=[steps])
    said = [5] * NUM_STEPS
    said[3], said[9] = 7, 8
    case = judged(ours, replace(OURS, greedy=[said]), OURS, EIGHT)
    assert (case.greedy_margin, case.passed) == (0.25, True)  # the limit itself passes


@pytest.mark.parametrize(("bits", "passes"), [(16, False), (8, False), (4, True)])
def test_a_token_that_we_score_much_lower_fails_but_with_a_cache_of_4_bits(bits, passes):
    """Scores agree at every position, so only what the engine writes tells that its decoding is broken."""
    steps = OURS.steps[0].copy()
    steps[3, 7] = 0.5
    said = [5] * NUM_STEPS
    said[3] = 7
    case = judged(replace(OURS, steps=[steps]), replace(OURS, greedy=[said]), OURS, Way("llama", bits, 1))
    assert (case.greedy_margin, case.top1_agreement, case.passed) == (0.5, 1.0, passes)
    assert case.reason == ("" if passes else "it writes a token that we score 0.500 nats below our own")


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("said", [[], [5] * 3, [5] * (NUM_STEPS + 1)])
def test_a_text_that_ends_elsewhere_fails_with_every_cache(bits, said):
    case = judged(OURS, replace(OURS, greedy=[said]), OURS, Way("llama", bits, 1))
    assert (case.greedy_margin, case.passed) == (math.inf, False)
    assert case.reason == "a text that it writes is ours but not of our length"


@pytest.mark.parametrize("file", PROOFS, ids=lambda file: file.stem)
def test_the_proofs_that_lie_here_hold_the_limits_of_today(file):
    proof = read_proof(file)
    assert proof.thresholds == {"top1_agreement": TOP1, "perplexity_ratio": PERPLEXITY, "greedy_margin": MARGIN}
    fine = [case for case in proof.cases if case.kv_bits in FINE_KV]
    assert fine
    if file.name.startswith("fp8"):  # its kernels round inputs too, and so decide near ties
        assert not proof.passed
        assert all(case.kl_nats < 0.01 and case.greedy_margin <= MARGIN for case in fine if case.perplexity)
        return
    assert all(case.passed and case.greedy_margin <= MARGIN for case in fine)
    assert proof.passed == (fine == proof.cases)  # a cache of 4 bits fails by its likeliest tokens


def test_a_proof_of_before_the_limit_of_what_is_written_can_be_read(tmp_path):
    told = json.loads(PROOFS[0].read_text("utf8"))
    del told["thresholds"]["greedy_margin"]
    (tmp_path / "old.json").write_text(json.dumps(told))
    assert read_proof(tmp_path / "old.json").cases == read_proof(PROOFS[0]).cases


def test_our_numbers_are_the_model_s_own(repository, tmp_path):
    folder = repository / "models" / "awq-w4"
    model = load_model(folder)
    asked = what_is_asked(folder, TOKENS)
    sixteen, four = (our_numbers(model, asked, bits, tmp_path) for bits in (16, 4))
    with torch.no_grad():
        expected = [model(row[None], labels=row[None]).loss.item() for row in TOKENS]
        scores = model(torch.tensor([asked.text_ids[0] + sixteen.greedy[0]])).logits[0]
    assert sixteen.nll_nats == pytest.approx(expected, rel=1e-5)
    assert four.nll_nats != sixteen.nll_nats
    assert four.nll_nats == pytest.approx(expected, rel=0.1)
    read = len(asked.text_ids[0])
    assert np.allclose(sixteen.logits[0], scores[:read], atol=1e-4)
    assert np.allclose(sixteen.steps[0], scores[read - 1 : -1], atol=1e-4)
    assert sixteen.greedy[0] == sixteen.steps[0].argmax(-1).tolist()


# --- one file of several calls


def written(*ways, passed=True, device="H200", **facts):
    cases = [Case(layout=layout, kv_bits=bits, tp=tp, passed=passed) for layout, bits, tp in ways]
    told = {"artifact": "abc", "engine": "lmdeploy 0.18.0", "windows": "0", "thresholds": {}} | facts
    return Conformance(**told, device=device, passed=passed, cases=cases)


def test_a_later_call_adds_its_ways_and_replaces_its_own():
    first = written(("llama", 16, 1), ("llama", 8, 1), passed=False, refused=["no"])
    both = merged(first, written(("llama", 8, 1), ("llama", 16, 2), device="H100"))
    assert {str(case.way): case.passed for case in both.cases} == {
        "layout llama, KV 16, tp 1": False,
        "layout llama, KV 8, tp 1": True,
        "layout llama, KV 16, tp 2": True,
    }
    assert (both.passed, both.device, both.refused) == (False, "H200, H100", ["no"])
    assert merged(both, written(("llama", 16, 1))).passed


@pytest.mark.parametrize("other", ["artifact", "engine", "windows"])
def test_what_was_asked_of_something_else_is_not_kept(other):
    newer = written(("llama", 8, 1))
    assert merged(written(("llama", 16, 1), **{other: "other"}), newer) == newer
    assert merged(None, newer) == newer


# --- the command


@pytest.fixture
def conformance(turbopress, repository, monkeypatch):
    """Runs the command on awq-w4 in the repository, under these environment variables."""

    def run(env, *arguments):
        for name, value in ({"TURBOPRESS_DEVICE": "cpu"} | env).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(repository)
        return turbopress("conformance", "awq-w4", *arguments, "--windows", "data")

    return run


def proof_of(repository, name="awq-w4"):
    return json.loads((repository / "reports" / f"{name}.conformance.json").read_text())


@pytest.fixture
def no_proof(repository):
    """The repository before anything was proven in it."""
    (repository / "reports" / "awq-w4.conformance.json").unlink(missing_ok=True)
    return repository


def test_an_engine_that_computes_as_we_do_is_proven_way_by_way_into_one_file(conformance, no_proof, tmp_path):
    engine = stand_in(tmp_path, sys.executable)
    status, out, err = conformance(engine, "--kv", "16", "--layout", "llama")
    assert (status, err) == (0, "")
    assert out.startswith("awq-w4, layout llama, KV 16, tp 1: perplexity ")
    assert "greedy 100.00 % (at most 0.000 logits apart)" in out
    assert out.endswith(", agrees\n")
    assert conformance(engine, "--kv", "8", "--layout", "internlm2")[0] == 0
    proof = proof_of(no_proof)
    assert proof["passed"]
    assert [(c["layout"], c["kv_bits"], c["tp"]) for c in proof["cases"]] == [("llama", 16, 1), ("internlm2", 8, 1)]
    assert (proof["engine"], proof["device"]) == ("lmdeploy 0.18.0", "NVIDIA H200")
    assert proof["artifact"] == verify(no_proof / "models" / "awq-w4").digest
    sixteen, eight = proof["cases"]
    assert max(abs(sixteen["kl_nats"]), abs(eight["kl_nats"])) < 1e-6 < eight["kl_to_16_nats"] < 1e-2
    assert eight["kl_to_16_nats"] == pytest.approx(eight["simulated_kl_to_16_nats"], abs=1e-6)


def test_an_engine_that_computes_otherwise_is_told_with_where_and_by_how_much(conformance, no_proof, tmp_path):
    engine = stand_in(tmp_path, sys.executable, noise=1.0)
    status, out, err = conformance(engine, "--kv", "16", "--layout", "llama")
    assert (status, err) == (
        1,
        "turbopress: conformance: the engine disagrees on awq-w4; see reports/*.conformance.json\n",
    )
    assert out.endswith(", DISAGREES\n")
    (case,) = proof_of(no_proof)["cases"]
    assert not case["passed"]
    assert "top-1 agreement" in case["reason"]
    assert case["greedy_margin"] > 0
    assert case["kl_nats"] > 0.1


def test_what_no_server_would_try_is_left_out_with_the_reason(conformance, no_proof, tmp_path):
    engine = stand_in(tmp_path, sys.executable, num_gpus=3)
    conformance(engine, "--kv", "8,4", "--tp", "1,3", "--layout", "llama")
    proof = proof_of(no_proof)
    assert [(case["kv_bits"], case["tp"]) for case in proof["cases"]] == [(8, 1)]
    four, three = proof["refused"]
    assert four == "quant_policy 4 ends the engine with heads of 64; use 0 or 8"
    assert three.startswith("tp 3 does not divide 4 heads with 2 kv heads; legal are 1")


@pytest.mark.parametrize(
    ("num_gpus", "arguments", "said"),
    [
        (0, (), "conformance: there is no GPU here, and the engine needs one; run it where there is"),
        (1, ("--tp", "1,2"), "--tp 2: GPUs here are 1; run it where there are 2, or ask for less"),
        (1, ("--kv", "4"), "models/awq-w4: cannot be served so: quant_policy 4 ends the engine with heads of 64"),
    ],
)
def test_what_cannot_be_asked_here_is_refused_in_a_line_and_a_proof_stays_as_it_was(
    conformance, no_proof, tmp_path, num_gpus, arguments, said
):
    file = no_proof / "reports" / "awq-w4.conformance.json"
    file.write_text(written(("llama", 16, 2)).model_dump_json())
    before = file.read_bytes()
    status, out, err = conformance(stand_in(tmp_path, sys.executable, num_gpus), *arguments)
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert file.read_bytes() == before


def test_an_interpreter_without_lmdeploy_is_refused_before_anything_is_read(conformance, no_proof, tmp_path):
    status, out, err = conformance(stand_in(tmp_path, sys.executable) | {"LMDEPLOY_PYTHON": shutil.which("false")})
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert "has no lmdeploy; pip install 'turbopress[lmdeploy]'" in err


def test_an_engine_that_ends_is_a_case_that_failed_with_its_last_words(conformance, no_proof, tmp_path):
    engine = stand_in(tmp_path, sys.executable)
    (tmp_path / "site" / "lmdeploy" / "__init__.py").write_text("raise RuntimeError('the card has fallen off the bus')")
    assert conformance(engine, "--kv", "16", "--layout", "llama")[0] == 1
    (case,) = proof_of(no_proof)["cases"]
    assert case["reason"] == "the engine ended with status 1: RuntimeError: the card has fallen off the bus"


def test_what_is_through_lies_in_the_file_when_the_machine_goes(conformance, no_proof, tmp_path, monkeypatch):
    """The second way is never answered: something ends the command in it."""
    engine, asked = stand_in(tmp_path, sys.executable), []
    answer = proof_module.engine_numbers

    def taken_back(folder, what, way, work):
        asked.append(way)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(folder, what, way, work)

    monkeypatch.setattr(proof_module, "engine_numbers", taken_back)
    with contextlib.suppress(KeyboardInterrupt):  # where a command line does not turn it into a status itself
        conformance(engine, "--kv", "16,8", "--layout", "llama")
    assert [way.kv_bits for way in asked] == [16, 8]
    assert [case["kv_bits"] for case in proof_of(no_proof)["cases"]] == [16]


def test_bits_that_no_cache_has_are_refused(conformance):
    assert conformance({}, "--kv", "16,3") == (1, "", "turbopress: --kv: 3; choose of 16, 8 and 4\n")
    assert conformance({}, "--tp", "0") == (1, "", "turbopress: --tp: 0; write numbers with commas, as 16,8,4\n")


@pytest.mark.parametrize(("method", "dtype"), [("fp8", "bfloat16"), ("awq", "float16")])
def test_the_engine_computes_in_what_the_format_s_kernels_take(repository, tmp_path, monkeypatch, method, dtype):
    """In float16 LMDeploy has no kernel for fp8 on Hopper, and ends."""
    folder = repository / "models" / "awq-w4"
    config = json.loads((folder / "config.json").read_text("utf8"))
    config["quantization_config"]["quant_method"] = method
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("LMDEPLOY_PYTHON", shutil.which("false"))
    engine_numbers(tmp_path, what_is_asked(folder, TOKENS), EIGHT, tmp_path)
    assert json.loads((tmp_path / "job.json").read_text("utf8"))["engine"]["dtype"] == dtype


@pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")
def test_the_real_engine_answers_what_it_is_asked(repository, tmp_path):
    """Its numbers are made up here, but the windows, texts, layouts and its interface are real."""
    folder = repository / "models" / "awq-w4"
    env = emulated(tmp_path / "lmdeploy", server_interpreter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMDEPLOY_PYTHON", env["LMDEPLOY_PYTHON"])
        asked = what_is_asked(folder, TOKENS)
        numbers = engine_numbers(folder, asked, EIGHT, tmp_path)
        assert isinstance(numbers, Numbers), numbers
        assert len(numbers.nll_nats) == 4
        assert [rows.shape for rows in numbers.logits] == [(len(ids), 512) for ids in asked.text_ids]
        assert [len(said) for said in numbers.greedy] == [NUM_STEPS] * 4
        broken = tmp_path / "empty"
        broken.mkdir()
        (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
        assert "Error" in engine_numbers(broken, asked, EIGHT, tmp_path)
