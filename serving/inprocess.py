"""`from serving import pipeline`: a folder, or a server's address, as one Python function.

pipe = pipeline("models/awq-w4")
print(pipe("Once upon a time").text)
for piece in pipe.stream([{"role": "user", "content": "Who are you?"}]): print(piece, end="")
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from registry.errors import RegistryError
from registry.manifest import MANIFEST, verify
from serving.client import Client, is_address
from serving.engine import Engine, Message, Sampling, load_engine
from serving.errors import ServingError
from serving.images import user_message
from serving.profile import EngineProfile

Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str


class Pipeline:
    """An engine as a function: a prompt, a conversation, or a list of prompts in, answers out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @overload
    def __call__(self, prompt: Prompt, *, raw: bool = ..., images: Sequence[Path] = ..., **sampling: Any) -> Answer: ...
    @overload
    def __call__(
        self, prompt: list[str], *, raw: bool = ..., images: Sequence[Path] = ..., **sampling: Any
    ) -> list[Answer]: ...
    def __call__(
        self, prompt: Prompt | list[str], *, raw: bool = False, images: Sequence[Path] = (), **sampling: Any
    ) -> Answer | list[Answer]:
        """The answer; `sampling` takes max_tokens, temperature, top_p and seed, `raw` leaves chat markup out."""
        if isinstance(prompt, list) and all(isinstance(one, str) for one in prompt):
            return [Answer("".join(self.stream(one, raw=raw, images=images, **sampling))) for one in prompt]
        return Answer("".join(self.stream(prompt, raw=raw, images=images, **sampling)))  # type: ignore[arg-type]

    def stream(
        self, prompt: Prompt, *, raw: bool = False, images: Sequence[Path] = (), **sampling: Any
    ) -> Iterator[str]:
        """The answer in pieces; closing the iterator stops it."""
        drawn = replace(Sampling(), **sampling)
        if raw and (images or not isinstance(prompt, str)):
            raise ServingError("raw: continues a text as it stands; leave raw out for images or a conversation")
        if images and not isinstance(prompt, str):
            raise ServingError("images: go with a text; of a conversation put them into its messages (user_message)")
        if isinstance(prompt, str):
            return (
                self.engine.complete(prompt, drawn) if raw else self.engine.chat([user_message(prompt, images)], drawn)
            )
        return self.engine.chat(list(prompt), drawn)


def pipeline(model: str | Path, profile: EngineProfile | None = None, *, engine: str | None = None) -> Pipeline:
    """The model of a folder, or behind an address (http://…), ready to be asked; an altered artifact is refused."""
    if is_address(str(model)):
        return Pipeline(Client(str(model)))
    folder = Path(model)
    if (folder / MANIFEST).exists():  # any other folder may be asked as well
        _verify(folder)
    return Pipeline(load_engine(folder, profile or EngineProfile(), engine))


def _verify(folder: Path) -> None:
    """Refuses bytes that were not sealed, as an error of serving's: whoever calls us need know no other."""
    try:
        verify(folder)
    except RegistryError as error:
        raise ServingError(str(error)) from error
