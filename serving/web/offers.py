"""What the page offers: each model by name, loaded when it is first asked, with its card and the comparison table."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serving.engine import Engine

FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
NO_CARD = "This model came without a card."


@dataclass
class Offer:
    """A model that can be talked to. `open` makes its engine, once."""

    name: str
    open: Callable[[], Engine]
    card: str = NO_CARD  # in markdown, with what was measured
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
