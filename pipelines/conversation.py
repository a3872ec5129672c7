"""A conversation on the terminal, or one answer."""

from compress.evaluate.generation import Message, Sampling, Speaker

RESET = "/reset"


def answer_once(
    speaker: Speaker, prompt: str, sampling: Sampling, *, raw: bool, system: str | None, echo: bool = True
) -> str:
    """The answer to one prompt, printed as it comes where `echo` is on."""
    return _speak(speaker, [*_opening(system), _said("user", prompt)], sampling, raw=raw, echo=echo)


def converse(speaker: Speaker, sampling: Sampling, *, raw: bool, system: str | None) -> None:
    """Asks for prompts until the input ends."""
    history = _opening(system)
    while (prompt := _ask()) is not None:
        if prompt == RESET:
            history = _opening(system)
            continue
        history.append(_said("user", prompt))
        history.append(_said("assistant", _speak(speaker, history, sampling, raw=raw, echo=True)))


def _speak(speaker: Speaker, history: list[Message], sampling: Sampling, *, raw: bool, echo: bool) -> str:
    prompt = history[-1]["content"] if raw else speaker.render(history)
    pieces = []
    for piece in speaker.answer(prompt, sampling, marked=not raw):
        pieces.append(piece)
        if echo:
            print(piece, end="", flush=True)
    if echo:
        print()
    return "".join(pieces)


def _ask() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


def _opening(system: str | None) -> list[Message]:
    return [_said("system", system)] if system else []


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}
