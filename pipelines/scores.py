"""What an evaluation found, as the report and its details have it: metrics, intervals, strata, documents."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from compress.corpus import Windows
from compress.evaluate.intervals import METRICS, bootstrap
from compress.evaluate.tokens import TokenScores, by_document

FEWEST_DOCUMENTS = 8  # of fewer no interval can be drawn; windows, which are less independent, stand in for them
POSITIONS = (0, 64, 256, 1024, 4096)  # where strata of positions in the window begin
Metrics = dict[str, float]


def unit(windows: Windows) -> str:
    """What an interval's bootstrap draws."""
    return "window" if _documents(windows) is None else "document"


def measure(scores: TokenScores, windows: Windows) -> tuple[Metrics, dict[str, dict[str, float]]]:
    """Every metric over all tokens, and the ends of its interval."""
    sums = by_document(scores, _documents(windows), windows.predicts).columns
    found = {name: bootstrap(statistic, sums) for name, statistic in METRICS.items()}
    ends = {name: {"low": i.low, "high": i.high} for name, i in found.items()}
    return {name: i.value for name, i in found.items()}, ends


def strata(
    scores: TokenScores, windows: Windows, languages: Sequence[str] = ()
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every metric by kind of text, by language and by position in the window, with intervals."""
    shape = windows.tokens.shape
    position = np.broadcast_to(np.arange(shape[1]), shape)
    edges = [
        (start, end) for start, end in zip(POSITIONS, (*POSITIONS[1:], shape[1]), strict=True) if start < shape[1] - 1
    ]
    by_position = {f"{a}-{min(b, shape[1]) - 1}": (position >= a) & (position < b) for a, b in edges}
    families = {
        "domains": _by_window(windows.domains, shape),
        **({"languages": _by_window(languages, shape)} if languages else {}),
        "positions": by_position,
    }
    return {name: {k: _stratum(scores, windows, m) for k, m in masks.items()} for name, masks in families.items()}


def _by_window(names: Sequence[str], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """For each name, which positions lie in its windows."""
    column = np.array(names)[:, None]
    return {name: np.broadcast_to(column == name, shape) for name in sorted(set(names))}


def _stratum(scores: TokenScores, windows: Windows, where: np.ndarray) -> dict[str, Any]:
    counted = where if windows.predicts is None else where & windows.predicts
    sums = by_document(scores, _documents(windows), counted).columns
    found = {name: bootstrap(statistic, sums) for name, statistic in METRICS.items()}
    values = {name: i.value for name, i in found.items()}
    return {**values, "kl_nats_interval": {k: v for k, v in asdict(found["kl_nats"]).items() if k != "value"}}


def documents_json(scores: TokenScores, windows: Windows) -> dict[str, Any]:
    """Every document's sums: what two variants are compared by."""
    sums = by_document(scores, _documents(windows), windows.predicts)
    columns = {name: column.tolist() for name, column in sums.columns.items()}
    return {"evaluation": windows.digest, "unit": unit(windows), "units": sums.units.tolist(), "columns": columns}


def _documents(windows: Windows) -> np.ndarray | None:
    owners = windows.documents
    return None if owners is None or len(np.unique(owners)) < FEWEST_DOCUMENTS else owners
