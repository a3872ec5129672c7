"""A folder in this process by transformers, on the CPU or a GPU: its weights unpacked to the numbers they stand for."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForImageTextToText, AutoProcessor

from compress.checkpoint.vision import unpack
from compress.errors import CompressError
from compress.evaluate.generation import Sampling as Drawn
from compress.evaluate.generation import Speaker, Spoken
from pipelines.stage import device
from serving.engine import Ending, Engine, Message, Pieces, Sampling
from serving.errors import ServingError
from serving.images import picture, words
from serving.profile import EngineProfile
from serving.shape import read_shape

CODED = "InternVLChatModel"  # as InternVL is published; `vision give` writes InternVLForConditionalGeneration
ONE_AT_A_TIME = threading.Lock()  # torch has one source of chance: two answers at once would change each other's


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What a model, its tokenizer or its processor refuses is refused in one line."""
    try:
        yield
    except CompressError as error:
        raise ServingError(str(error)) from error
    except (ValueError, TypeError, KeyError, RuntimeError, TemplateError) as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise ServingError(f"{name}: cannot answer this ({told}); ask otherwise, or serve another model") from error


@dataclass(frozen=True)
class TransformersEngine:
    """A speaker under serving's two verbs."""

    name: str
    speaker: Speaker

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Pieces:
        """The assistant's answer, in pieces."""
        if any(not isinstance(message["content"], str) for message in messages):
            raise ServingError(f"{self.name}: takes no images; leave them out, or serve a model that sees")
        said = [{"role": message["role"], "content": words(message)} for message in messages]
        with explained(self.name):
            prompt = self.speaker.render(said)
        return self._speak(prompt, sampling, marked=True)

    def complete(self, text: str, sampling: Sampling) -> Pieces:
        """How the text goes on."""
        return self._speak(text, sampling, marked=False)

    def _speak(self, prompt: str, sampling: Sampling, *, marked: bool) -> Pieces:
        with ONE_AT_A_TIME, explained(self.name):
            return _ending((yield from self.speaker.answer(prompt, _drawn(sampling), marked=marked)))


def load(folder: Path, profile: EngineProfile) -> Engine:
    """The folder's model; what a profile says of a GPU server's memory does not concern it."""
    shape = read_shape(folder)
    if shape.architecture == CODED:
        told = f"{CODED} is a class that comes with the checkpoint, and its code is not run here"
        raise ServingError(f"{folder}: {told}; write it for the stock class by `turbopress vision take` and `give`")
    if shape.sees_images:
        return SeeingEngine.load(folder)
    return TransformersEngine(folder.name, Speaker.load(folder, device()))


@dataclass(frozen=True)
class SeeingEngine:
    """A vision-language model of a stock class with its processor."""

    name: str
    speaker: Speaker
    processor: Any

    @classmethod
    def load(cls, folder: Path) -> "SeeingEngine":
        """The folder's model, unpacked for its class to read."""
        with TemporaryDirectory() as unpacked:
            unpack(folder, Path(unpacked))
            try:
                processor = AutoProcessor.from_pretrained(unpacked)
            except (ImportError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ServingError(
                    f"{folder}: its processor cannot be made ({reason}); serve it by LMDeploy"
                ) from error
            model = AutoModelForImageTextToText.from_pretrained(unpacked, dtype=torch.float32).to(device()).eval()
        speaker = Speaker(model, processor.tokenizer, model.generation_config.eos_token_id)
        return cls(folder.name, speaker, processor)

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Pieces:
        """The assistant's answer to a conversation with images, in pieces."""
        said = [message | {"content": _parts(message["content"])} for message in messages]
        with explained(self.name):
            inputs = self.processor.apply_chat_template(
                said, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        return self._speak(dict(inputs), sampling)

    def complete(self, text: str, sampling: Sampling) -> Pieces:
        """How a text without images goes on."""
        with explained(self.name):
            inputs = self.processor(text=text, return_tensors="pt")
        return self._speak(dict(inputs), sampling)

    def _speak(self, inputs: dict[str, torch.Tensor], sampling: Sampling) -> Pieces:
        with ONE_AT_A_TIME, explained(self.name):
            self.speaker.require_room(inputs["input_ids"].shape[1])
            there = {k: v.to(self.speaker.model.device) for k, v in inputs.items()}
            return _ending((yield from self.speaker.stream(there, _drawn(sampling))))


def _parts(content: Any) -> Any:
    """A message's parts as processors take them: the images themselves in place of their addresses."""
    if isinstance(content, str):
        return content
    return [
        {"type": "image", "image": picture(part["image_url"]["url"])} if part["type"] == "image_url" else part
        for part in content
    ]


def _ending(spoken: Spoken) -> Ending:
    return Ending("length" if spoken.cut else "stop", spoken.prompt_tokens, spoken.new_tokens)


def _drawn(sampling: Sampling) -> Drawn:
    return Drawn(sampling.max_tokens, float(sampling.temperature), float(sampling.top_p), sampling.seed)
