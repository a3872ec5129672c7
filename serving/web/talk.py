"""What happens when somebody presses a button: histories in, histories out, piece by piece, without a browser.

Each visitor's stop button reaches that visitor's answer only: `Stops` holds one flag a session.
"""

import html
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from serving.engine import Message, Sampling
from serving.errors import ServingError
from serving.images import user_message, words
from serving.web.differences import marked, share_equal
from serving.web.offers import Offer


class Stops:
    """Which sessions have asked for the end of their answer."""

    def __init__(self) -> None:
        self._flags: dict[str, threading.Event] = {}

    def begin(self, session: str) -> threading.Event:
        """A fresh flag for an answer that begins."""
        self._flags[session] = threading.Event()
        return self._flags[session]

    def stop(self, session: str) -> None:
        """The session's answer ends with its next piece."""
        if flag := self._flags.get(session):
            flag.set()


def asked(history: Sequence[Message], text: str, images: Sequence[Path]) -> list[Message]:
    """The history with the user's new message; one that cannot be sent has its refusal for an answer already."""
    try:
        return [*history, user_message(text, images)]
    except ServingError as error:
        return [*history, user_message(text), {"role": "assistant", "content": _refusal(error)}]


def answered(
    history: Sequence[Message], offer: Offer, system: str, sampling: Sampling, stop: threading.Event
) -> Iterator[list[Message]]:
    """The history with the assistant's answer as far as it has come, again and again until it is whole or stopped."""
    opening: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for text in spoken(offer, [*opening, *history], sampling, stop):
        yield [*history, {"role": "assistant", "content": text}]


def spoken(offer: Offer, messages: Sequence[Message], sampling: Sampling, stop: threading.Event) -> Iterator[str]:
    """The answer as far as it has come; a refusal, of loading too, is shown as the answer would be."""
    text = ""
    try:
        with closing(offer.engine.chat(messages, sampling)) as answer:
            for piece in answer:
                if stop.is_set():
                    break
                text += piece
                yield text
    except ServingError as error:
        yield f"{text}\n\n{_refusal(error)}".strip()


def _refusal(error: ServingError) -> str:
    return f"⚠ {error}"


def side_by_side(
    left: Offer, right: Offer, prompt: str, system: str, sampling: Sampling, stop: threading.Event
) -> Iterator[tuple[str, str, str]]:
    """Both answers as HTML, one after the other so that a seed means the same for both; at the end, differences."""
    opening: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    messages = [*opening, user_message(prompt)]
    texts = ["", ""]
    for place, offer in enumerate((left, right)):
        for texts[place] in spoken(offer, messages, sampling, stop):
            yield *(_shown(text) for text in texts), f"{offer.name} is speaking …"  # type: ignore[misc]
    same = share_equal(*texts)
    one, other = (_shown(text, is_html=True) for text in marked(*texts))
    yield one, other, f"{100 * same:.0f} % of the tokens are the same; what differs is marked."


def shown(history: Sequence[Message]) -> list[Mapping[str, str]]:
    """The history for Gradio's chatbot; an image is named, as the bytes went to the model."""
    return [{"role": message["role"], "content": _line(message)} for message in history]


def _line(message: Message) -> str:
    pictures = "" if isinstance(message["content"], str) else "🖼 " * (len(message["content"]) - 1)
    return pictures + words(message)


def _shown(text: str, *, is_html: bool = False) -> str:
    return f'<div class="answer">{text if is_html else html.escape(text)}</div>'
