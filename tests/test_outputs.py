"""What a model writes by itself is measured token for token."""

import pytest
import torch
from tiny import windows, write_internlm2

from compress.checkpoint.load import load_model
from compress.evaluate.outputs import Outputs, describe, likelihood, repetition, write_on


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_internlm2(folder)
    return load_model(folder)


def test_a_continuation_is_the_likeliest_token_each_time(model):
    prompts = windows(3, 8)
    outputs = write_on(model, prompts, 5, [], batch=2)
    for prompt, row in zip(prompts, outputs.written, strict=True):
        so_far = prompt.tolist()
        for token in row:
            with torch.no_grad():
                assert model(torch.tensor([so_far])).logits[0, -1].argmax().item() == token
            so_far.append(token)
        assert len(row) == 5


def test_a_continuation_ends_with_its_end_mark(model):
    prompts = windows(3, 8)
    free = write_on(model, prompts, 6, []).written
    mark = free[0][2]
    stopped = write_on(model, prompts, 6, [mark]).written
    for before, after in zip(free, stopped, strict=True):
        assert after == (before[: before.index(mark) + 1] if mark in before else before)
    assert len(stopped[0]) <= 3


def test_the_base_s_likelihood_of_an_output_is_that_of_its_own_logits(model):
    prompts = windows(2, 6)
    outputs = Outputs(prompts, [[5, 7, 9], [11]], 4)
    expected = []
    for prompt, row in zip(prompts, outputs.written, strict=True):
        so_far = prompt.tolist()
        for token in row:
            with torch.no_grad():
                expected.append(-model(torch.tensor([so_far])).logits[0, -1].log_softmax(-1)[token].item())
            so_far.append(token)
    assert likelihood(model, outputs) == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_what_a_model_writes_is_likelier_to_itself_than_what_it_does_not(model):
    prompts = windows(2, 6)
    own = write_on(model, prompts, 5, [])
    strange = Outputs(prompts, [[t + 1 for t in row] for row in own.written], 5)
    assert likelihood(model, own) < likelihood(model, strange)


def test_repetition_is_the_share_of_what_was_said_before():
    assert repetition(range(20)) == 0
    assert repetition([1, 2] * 20) == pytest.approx(1 - 2 / 37)
    assert repetition([1, 2, 3]) == 0


def test_a_description_counts_length_ends_and_repetition():
    outputs = Outputs(windows(2, 4), [[1, 2, 3], [7] * 8], 8)
    found = describe(outputs)
    assert found["output_tokens"] == 5.5
    assert found["output_ended"] == 0.5
    assert found["output_repetition"] == pytest.approx((0 + 4 / 5) / 2)


def test_a_continuation_stays_within_the_model_s_context(model):
    outputs = write_on(model, windows(1, 60), 50, [])
    assert outputs.most_tokens == len(outputs.written[0]) == 4
