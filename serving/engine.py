"""What answers: a model in this process or a server behind a URL, both with the same two verbs.

Which kinds there are for a folder is an entry point (`turbopress.engines`), so that serving need not know who unpacks
weights: LMDeploy's comes with serving, the one on transformers with the pipelines.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from serving.errors import ServingError
from serving.profile import EngineProfile

GROUP = "turbopress.engines"
Message = dict[str, Any]  # {"role": "user", "content": "…"}; content may be a list of text and image parts


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 always takes the likeliest."""

    max_tokens: int = 200
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Ending:
    """Why an answer ended, and what it took."""

    reason: Literal["stop", "length"]  # its own end, or max_tokens
    prompt_tokens: int
    completion_tokens: int


# The answer as it comes; whoever makes it returns its end where it knows that.
Pieces = Generator[str, None, Ending | None]


class Engine(Protocol):
    """A model that is ready. Closing what it returned stops the answer; what it refuses is a ServingError."""

    @property
    def name(self) -> str:
        """The model's name, as a person knows it."""
        ...

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Pieces:
        """The assistant's answer to a conversation, in pieces as they come."""
        ...

    def complete(self, text: str, sampling: Sampling) -> Pieces:
        """How the text goes on, without chat markup."""
        ...


Load = Callable[[Path, EngineProfile], Engine]


def load_engine(folder: Path, profile: EngineProfile, kind: str | None = None) -> Engine:
    """The model of a folder in this process: by LMDeploy where it and a GPU are there, else by transformers."""
    from serving.gpus import gpus  # noqa: PLC0415 - asks a program

    known = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    chosen = kind or ("lmdeploy" if importlib.util.find_spec("lmdeploy") and gpus() else "transformers")
    if chosen not in known:
        raise ServingError(f"engine {chosen}: is not installed; choose {' or '.join(sorted(known)) or 'none'}")
    load: Load = known[chosen].load()
    return load(folder, profile)
