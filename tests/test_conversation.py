"""A conversation on the terminal, with an engine that repeats what it was asked: what it is sent, and what it loses."""

import io

import pytest

from serving.conversation import converse
from serving.engine import Ending, Sampling
from serving.errors import ServingError


class Refusing:
    """An engine that keeps what it is sent, and refuses in the middle of an answer whatever ends with `no`."""

    name = "refusing"

    def __init__(self):
        self.asked = []

    def chat(self, messages, sampling):
        self.asked.append([f"{message['role']}: {message['content']}" for message in messages])
        yield "heard "
        if messages[-1]["content"].endswith("no"):
            raise ServingError("prompt: has 80 tokens and the model reads 64")
        yield messages[-1]["content"]
        return Ending("stop", 1, 1)

    complete = chat


@pytest.fixture
def spoken(monkeypatch):
    """What the engine was sent, a list a prompt, when these lines were typed."""

    def run(typed, system=None):
        engine = Refusing()
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        converse(engine, Sampling(), raw=False, system=system)
        return engine.asked

    return run


def test_a_refusal_is_told_and_the_conversation_goes_on_from_where_it_was(spoken, capsys):
    asked = spoken("one\ntwo no\nthree\n")
    assert asked[2] == ["user: one", "assistant: heard one", "user: three"]
    assert capsys.readouterr().err == (
        "turbopress: prompt: has 80 tokens and the model reads 64; "
        "your message is taken back: say it otherwise, or /reset\n"
    )


def test_reset_forgets_all_but_the_system_prompt(spoken):
    asked = spoken("one\n  /reset \ntwo\n", system="be brief")
    assert asked == [["system: be brief", "user: one"], ["system: be brief", "user: two"]]


def test_an_empty_line_is_not_sent(spoken):
    assert spoken("\n  \none\n") == [["user: one"]]
