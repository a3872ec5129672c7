"""LMDeploy in this process, with answers of its own form: what it says of an end is heard."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.engine import Ending, Sampling
from serving.errors import ServingError
from serving.lmdeploy_engine import LmdeployEngine


@dataclass
class Response:
    """The fields of lmdeploy.messages.Response that its stream sets, with their defaults."""

    text: str
    generate_token_len: int
    input_token_len: int
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    error_code: str | None = None
    error_message: str | None = None


class Pipe:
    """An LMDeploy pipeline that has these responses."""

    def __init__(self, *responses: Response) -> None:
        self.responses = responses

    def stream_infer(self, prompt: Any, gen_config: Any, do_preprocess: bool) -> Any:
        yield from self.responses


@pytest.fixture(autouse=True)
def lmdeploy(tmp_path, monkeypatch):
    """A module `lmdeploy` that takes a generation's settings."""
    (tmp_path / "lmdeploy.py").write_text("def GenerationConfig(**told): return told\n")
    monkeypatch.syspath_prepend(tmp_path)


def answer(*responses):
    engine = LmdeployEngine(Path("models/awq-w4"), Pipe(*responses))
    said, pieces = [], engine.chat([{"role": "user", "content": "hi"}], Sampling())
    while True:
        try:
            said.append(next(pieces))
        except StopIteration as ended:
            return "".join(said), ended.value


def test_an_answer_s_end_is_passed_on():
    """As LMDeploy streams: pieces without a reason, then one without text and with it."""
    whole = (Response("word", 1, 7), Response(" two", 2, 7), Response("", 2, 7, "stop"))
    assert answer(*whole) == ("word two", Ending("stop", 7, 2))
    assert answer(Response("word", 1, 7), Response("", 1, 7, "length")) == ("word", Ending("length", 7, 1))
    assert answer(Response("", 0, 7, "stop")) == ("", Ending("stop", 7, 0))  # it had nothing to say


def test_a_prompt_that_fills_the_session_is_refused_and_is_no_empty_answer():
    with pytest.raises(ServingError) as refused:
        answer(Response("", 0, 64, "length"))
    assert str(refused.value) == (
        "awq-w4: the prompt of 64 tokens leaves no room for an answer; shorten it, or serve with a larger --session-len"
    )


@pytest.mark.parametrize("before", [(), (Response("half", 1, 7),)])
def test_an_engine_s_error_is_told_with_its_own_words(before):
    broken = Response("", 0, 7, "error", error_code="input_length", error_message="Input length 80 exceeds 64")
    with pytest.raises(ServingError, match=r"awq-w4: LMDeploy broke off \(Input length 80 exceeds 64\); its log"):
        answer(*before, broken)
    with pytest.raises(ServingError, match=r"broke off \(abort\)"):
        answer(*before, Response("", 0, 7, "abort"))
    with pytest.raises(ServingError, match=r"broke off \(error\)"):
        answer()
