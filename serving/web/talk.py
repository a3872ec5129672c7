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
from serving.web.differences import Cut, cut_by, cut_words, marked, share_equal
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
    pair: tuple[Offer, Offer],
    prompt: str,
    images: Sequence[Path],
    system: str,
    sampling: Sampling,
    stop: threading.Event,
) -> Iterator[tuple[str, str, str]]:
    """Both answers as HTML, one after the other so that a seed means the same for both; at the end, differences."""
    try:
        message = _for_both(pair, prompt, images)
    except ServingError as error:
        yield "", "", _refusal(error)
        return
    opening: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    texts = ["", ""]
    for place, offer in enumerate(pair):
        for texts[place] in spoken(offer, [*opening, message], sampling, stop):
            yield _shown(texts[0]), _shown(texts[1]), f"{offer.name} is speaking …"
    yield _compared(pair, texts)


def _for_both(pair: tuple[Offer, Offer], prompt: str, images: Sequence[Path]) -> Message:
    """The prompt; refused where only one of the two would see its images."""
    blind = [offer.name for offer in pair if not offer.sees_images]
    if images and blind:
        raise ServingError(f"{blind[0]}: takes no images; leave them out, or choose two models that see")
    return user_message(prompt, images)


def _compared(pair: tuple[Offer, Offer], texts: Sequence[str]) -> tuple[str, str, str]:
    """Both texts with their differences marked, and what was compared in words."""
    try:
        cut, what, note = _cut_of(pair)
    except ServingError as error:
        return _shown(texts[0]), _shown(texts[1]), _refusal(error)
    left, right = map(cut, texts)
    one, other = (_shown(text, is_html=True) for text in marked(left, right))
    return (
        one,
        other,
        f"{100 * share_equal(left, right):.0f} % of the {what} are the same; what differs is marked. {note}",
    )


def _cut_of(pair: tuple[Offer, Offer]) -> tuple[Cut, str, str]:
    """How both answers are cut, into what, and why so: by the first tokenizer that is here."""
    for offer in pair:
        if tokenizer := offer.about().tokenizer:
            return cut_by(tokenizer), "tokens", f"Both are cut by the tokenizer of {offer.name}."
    return cut_words, "words", "Words are compared, because neither model's tokenizer is here."


def shown(history: Sequence[Message]) -> list[Mapping[str, str]]:
    """The history for Gradio's chatbot; an image is named, as the bytes went to the model."""
    return [{"role": message["role"], "content": _line(message)} for message in history]


def _line(message: Message) -> str:
    pictures = "" if isinstance(message["content"], str) else "🖼 " * (len(message["content"]) - 1)
    return pictures + words(message)


def _shown(text: str, *, is_html: bool = False) -> str:
    return f'<div class="answer">{text if is_html else html.escape(text)}</div>'
