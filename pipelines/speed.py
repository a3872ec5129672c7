"""Speeds as a report has them, and what can be said of two: only of one engine on one machine, never across.

A speed is tokens a second at some batch, the median of several runs with the slowest and the fastest of them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.evaluate.intervals import Interval
from pipelines.params import ParamsError

SAME = ("engine", "machine")
ENGINES = ("lmdeploy", "transformers")
FOLDER = "speeds"  # beside params.yaml, and not in git: a speed is of this machine


@dataclass(frozen=True)
class SpeedTable:
    """What one engine did on one machine: a row a variant."""

    title: str
    head: list[str]
    rows: list[list[str]]


class SpeedsDifferError(Exception):
    """Two speeds cannot be compared; the message says why."""


def speed_file(root: Path, variant: str, engine: str) -> Path:
    """Where `turbopress speed` keeps what it found."""
    return root / FOLDER / engine / f"{variant}.json"


def gate_speed(root: Path, variant: str) -> dict[str, Any] | None:
    """What the gate goes by: the engine that serves where it was timed, else transformers."""
    found = (read_speed(root, variant, engine) for engine in ENGINES)
    return next((speed for speed in found if speed), None)


def read_speed(root: Path, variant: str, engine: str) -> dict[str, Any] | None:
    """What was timed of a variant here, None where nothing was."""
    path = speed_file(root, variant, engine)
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise ParamsError(f"{path}: is not JSON ({error}); run: turbopress speed {variant}") from None
    return found


def timed_here(root: Path, variants: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    """Every speed that was found on this machine, with its variant."""
    known = list(variants)
    return [(v, found) for e in ENGINES for v in known if (found := read_speed(root, v, e))]


def tables(timed: Iterable[tuple[str, Mapping[str, Any]]]) -> list[SpeedTable]:
    """A table an engine and machine, because their speeds do not belong in one column."""
    kept = list(timed)
    return [
        _table(
            engine, machine, {v: found for v, found in kept if (found["engine"], found["machine"]) == (engine, machine)}
        )
        for engine, machine in sorted({(found["engine"], found["machine"]) for _, found in kept})
    ]


def _table(engine: str, machine: str, rows: Mapping[str, Mapping[str, Any]]) -> SpeedTable:
    batches = sorted({batch for found in rows.values() for batch in found["batches"]}, key=int)
    head = ["variant", *(f"tokens/s at batch {batch}" for batch in batches), "peak memory"]
    cells = [
        [variant, *(_rate(found["batches"].get(b)) for b in batches), f"{found['peak_bytes'] / 2**20:,.0f} MiB"]
        for variant, found in rows.items()
    ]
    return SpeedTable(f"{engine} on {machine}", head, cells)


def _rate(batch: Mapping[str, float] | None) -> str:
    return "" if batch is None else f"{batch['tokens_per_s']:,.1f}"


def speed_ratio(ours: str, mine: Mapping[str, Any] | None, theirs: str, other: Mapping[str, Any] | None) -> Interval:
    """The candidate's speed as a share of the other's, at the batch where it is worst."""
    for name, speed in ((ours, mine), (theirs, other)):
        if not speed:
            raise SpeedsDifferError(f"the speed of {name} was not measured; run: turbopress speed {name}")
    assert mine is not None
    assert other is not None
    for what in SAME:
        if mine[what] != other[what]:
            said = f"{ours} was timed on {what} {mine[what]!r} and {theirs} on {other[what]!r}"
            raise SpeedsDifferError(f"{said}; time both on one")
    shared = sorted(mine["batches"].keys() & other["batches"].keys(), key=int)
    if not shared:
        raise SpeedsDifferError(f"{ours} and {theirs} were timed at no batch in common; time both again")
    ratios = [_ratio(mine["batches"][batch], other["batches"][batch]) for batch in shared]
    return min(ratios, key=lambda ratio: ratio.low)


def _ratio(mine: Mapping[str, float], other: Mapping[str, float]) -> Interval:
    return Interval(
        mine["tokens_per_s"] / other["tokens_per_s"],
        mine["slowest_tokens_per_s"] / other["fastest_tokens_per_s"],
        mine["fastest_tokens_per_s"] / other["slowest_tokens_per_s"],
    )
