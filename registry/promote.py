"""Moving an alias such as `champion`: only a verdict moves it, or a person who says why; each move is kept.

What moved, when, by whom and on which verdict is a tag of the version, one tag a move, so that two machines that
promote at once overwrite nothing of each other's.
"""

import getpass
import json
import re
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from registry.errors import RegistryError
from registry.measurements import Measurement, read_measurement
from registry.publish import RESERVED
from registry.record import git
from registry.resolve import find_version, listed_versions
from registry.store import Store, connect, explained
from registry.versions import Version

MOVE_TAG = "promoted."
MOST_CHARACTERS = 4000  # of a tag's value; MLflow takes 5000
BASE = "base"


@dataclass(frozen=True)
class Move:
    """An alias that came to a version."""

    alias: str
    at: str  # UTC, ISO 8601
    by: str
    verdict: str
    forced: bool
    why: str | None
    before: int | None  # the version that had the alias


@dataclass(frozen=True)
class Decision:
    """What the gate said."""

    passed: bool
    words: str


@dataclass(frozen=True)
class Contest:
    """The candidate and whom it is held against, with what was measured of each."""

    candidate: Version
    candidate_measured: Measurement
    champion: Version | None
    champion_measured: Measurement | None
    base_measured: Measurement | None


@dataclass(frozen=True)
class Promoted:
    """How it went: `move` is None where the candidate was rejected, or had the alias already."""

    candidate: Version
    champion: Version | None  # who had the alias before
    alias: str
    decision: Decision
    move: Move | None

    @property
    def is_champion(self) -> bool:
        """Whether the candidate has the alias now."""
        return self.move is not None or _number(self.champion) == self.candidate.number


def promote(
    reference: str, *, root: Path, to: str, judge: Callable[[Contest], Decision], why: str | None = None
) -> Promoted:
    """Points the alias `to` at the version when the judge lets it pass, or when somebody says why all the same."""
    if not re.fullmatch(r"[\w-]+", to) or RESERVED.fullmatch(to):
        raise RegistryError(f"--to {to}: can be no alias in MLflow; use letters, digits, '_' and '-', as in champion")
    store = connect(root)
    with explained(store.uri), store.alone():
        candidate = find_version(store, reference)
        listed = listed_versions(store, candidate.model)
        if to in {version.variant for version in listed}:
            raise RegistryError(f"--to {to}: is a variant's own alias, which each registration moves; choose another")
        champion = next((version for version in listed if to in version.aliases), None)
        decision = judge(_contest(store, candidate, champion, listed))
        move = _move(candidate, champion, to, decision, why, root)
        if move is not None:
            _apply(store, candidate, move)
    return Promoted(candidate, champion, to, decision, move)


def moves(version: Version) -> list[Move]:
    """The aliases that came to a version, in the order of their coming."""
    found = [Move(**json.loads(value)) for tag, value in version.tags.items() if tag.startswith(MOVE_TAG)]
    return sorted(found, key=lambda move: move.at)


def _contest(store: Store, candidate: Version, champion: Version | None, listed: list[Version]) -> Contest:
    base = next((version for version in listed if BASE in version.aliases), None)
    return Contest(
        candidate,
        read_measurement(store, candidate),
        champion,
        read_measurement(store, champion) if champion else None,
        read_measurement(store, base) if base else None,
    )


def _move(
    candidate: Version, champion: Version | None, to: str, decision: Decision, why: str | None, root: Path
) -> Move | None:
    has_it = _number(champion) == candidate.number
    if has_it or not (decision.passed or why):
        return None
    at = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    forced = not decision.passed
    return Move(to, at, who(root), decision.words[:MOST_CHARACTERS], forced, why, _number(champion))


def _apply(store: Store, candidate: Version, move: Move) -> None:
    """The record first: an alias that moved without one could not be explained."""
    number = str(candidate.number)
    tag = f"{MOVE_TAG}{move.alias}.{re.sub(r'[^0-9]', '', move.at)}"
    text = json.dumps(asdict(_shortened(move)), ensure_ascii=False)
    store.client.set_model_version_tag(candidate.model, number, tag, text)
    try:
        store.client.set_registered_model_alias(candidate.model, move.alias, number)
    except BaseException:
        store.client.delete_model_version_tag(candidate.model, number, tag)
        raise


def _shortened(move: Move) -> Move:
    """The move in as many characters as a tag takes."""
    spare = MOST_CHARACTERS - len(json.dumps(asdict(replace(move, verdict="")), ensure_ascii=False))
    return replace(move, verdict=move.verdict[: max(0, spare - move.verdict.count("\n") - move.verdict.count('"'))])


def who(root: Path) -> str:
    """The person at this machine: git's name where it has one, else the account."""
    return git(root, "config", "user.name") or f"{getpass.getuser()}@{socket.gethostname()}"


def _number(version: Version | None) -> int | None:
    return version.number if version else None
