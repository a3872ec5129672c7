"""What the page offers: each model by name, loaded when it is first asked, with its card and its tokenizer."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from serving.engine import Engine
from serving.errors import ServingError

FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
NO_CARD = "This model came without a card."


@dataclass(frozen=True)
class About:
    """What is known here of a model."""

    card: str = NO_CARD  # in markdown, with what was measured
    folder: Path | None = None  # None where its files are elsewhere

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, where its file is here."""
        file = self.folder / "tokenizer.json" if self.folder else None
        return _read_tokenizer(file) if file and file.is_file() else None


@dataclass
class Offer:
    """A model that can be talked to. `open` makes its engine, once; `about` is asked anew by each who wants to know."""

    name: str
    open: Callable[[], Engine]
    about: Callable[[], About] = About
    sees_images: bool = False
    _engine: Engine | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def engine(self) -> Engine:
        """The model, ready; the first who asks waits while it is loaded."""
        with self._lock:
            if self._engine is None:
                self._engine = self.open()
            return self._engine


def read_card(folder: Path, report: Path | None = None) -> str:
    """What was measured, then the artifact's README without what is for programs, its headings made small."""
    path = folder / "README.md"
    text = FRONT_MATTER.sub("", path.read_text("utf8")) if path.is_file() else NO_CARD
    measured = _measured(report) if report and report.is_file() else ""
    return measured + re.sub(r"^(#+)", r"##\1", text, flags=re.MULTILINE)


def _measured(report: Path) -> str:
    """The metrics of a report as a table."""
    metrics = json.loads(report.read_text("utf8"))["metrics"]
    rows = [f"| {name.replace('_', ' ')} | {_readable(value)} |" for name, value in metrics.items()]
    return "\n".join(["| measured | |", "| --- | ---: |", *rows]) + "\n\n"


def _readable(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@lru_cache
def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ServingError(f"{file}: {error}; fetch it again") from None
