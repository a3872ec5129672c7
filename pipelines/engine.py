"""A folder in this process by transformers, on the CPU or a GPU: its weights unpacked to the numbers they stand for."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.evaluate.generation import Sampling as Drawn
from compress.evaluate.generation import Speaker
from pipelines.stage import device
from serving.engine import Message, Sampling
from serving.errors import ServingError
from serving.images import words
from serving.profile import EngineProfile

ONE_AT_A_TIME = threading.Lock()  # torch has one source of chance: two answers at once would change each other's


@dataclass(frozen=True)
class TransformersEngine:
    """A speaker under serving's two verbs."""

    name: str
    speaker: Speaker

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The assistant's answer, in pieces."""
        if any(not isinstance(message["content"], str) for message in messages):
            raise ServingError(f"{self.name}: takes no images; leave them out, or serve a model that sees")
        said = [{"role": message["role"], "content": words(message)} for message in messages]
        return self._speak(self.speaker.render(said), sampling, marked=True)

    def complete(self, text: str, sampling: Sampling) -> Iterator[str]:
        """How the text goes on."""
        return self._speak(text, sampling, marked=False)

    def _speak(self, prompt: str, sampling: Sampling, *, marked: bool) -> Iterator[str]:
        with ONE_AT_A_TIME:
            yield from self.speaker.answer(prompt, _drawn(sampling), marked=marked)


def load(folder: Path, profile: EngineProfile) -> TransformersEngine:
    """The folder's model; what a profile says of a GPU server's memory does not concern it."""
    return TransformersEngine(folder.name, Speaker.load(folder, device()))


def _drawn(sampling: Sampling) -> Drawn:
    return Drawn(sampling.max_tokens, float(sampling.temperature), float(sampling.top_p), sampling.seed)
