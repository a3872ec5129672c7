"""A conversation on the terminal, or one answer, with whatever engine answers."""

import sys
from collections.abc import Sequence
from pathlib import Path

from serving.engine import Engine, Message, Sampling
from serving.errors import ServingError
from serving.images import user_message

RESET = "/reset"


def answer_once(
    engine: Engine,
    prompt: str,
    sampling: Sampling,
    *,
    raw: bool,
    system: str | None,
    echo: bool = True,
    images: Sequence[Path] = (),
) -> str:
    """The answer to one prompt, printed as it comes where `echo` is on."""
    return _speak(engine, [*_opening(system), user_message(prompt, images)], sampling, raw=raw, echo=echo)


def converse(engine: Engine, sampling: Sampling, *, raw: bool, system: str | None) -> None:
    """Asks for prompts until the input ends; Ctrl-C stops an answer, and what came of it is remembered.

    What is refused is told and taken back: the conversation goes on from where it was.
    """
    history = _opening(system)
    while (prompt := _ask()) is not None:
        if prompt.strip() == RESET:
            history = _opening(system)
        elif prompt.strip():
            history = _answered(engine, [*history, user_message(prompt)], sampling, raw=raw) or history


def _answered(engine: Engine, asked: list[Message], sampling: Sampling, *, raw: bool) -> list[Message] | None:
    """What was asked with its answer behind it; None where the answer was refused."""
    try:
        return [*asked, {"role": "assistant", "content": _speak(engine, asked, sampling, raw=raw, echo=True)}]
    except ServingError as error:
        print(f"turbopress: {error}; your message is taken back: say it otherwise, or {RESET}", file=sys.stderr)
        return None


def _speak(engine: Engine, history: list[Message], sampling: Sampling, *, raw: bool, echo: bool) -> str:
    pieces: list[str] = []
    answer = engine.complete(history[-1]["content"], sampling) if raw else engine.chat(history, sampling)
    try:
        for piece in answer:
            pieces.append(piece)
            if echo:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        answer.close()
    if echo:
        print()
    return "".join(pieces)


def _ask() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        return None


def _opening(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []
