"""Judging a candidate: from its report and its opponents' to a verdict in words, and nothing else.

Every limit is held against the worse end of the 95 % interval, so a candidate that was measured on too little text
fails for that and says so. What was not measured, or on other text than the opponent, does not pass; nor does what the
engine has not proven, where a proof is demanded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compress.evaluate.intervals import (
    Interval,
    Sums,
    base_perplexity,
    bootstrap,
    kl_nats,
    perplexity,
    top1_agreement,
)
from pipelines.limits import Gate, Limit, Opponent, Proof
from pipelines.lineage import BASE
from pipelines.measured import Measured
from pipelines.speed import SpeedsDifferError, speed_ratio
from registry.conformance import refusal

OF_BOTH = ("most_size_ratio", "least_speed_ratio")  # what the candidate's own report does not say of the base
Format = Callable[[float], str]
Opponents = Mapping[Opponent, Measured | None]


@dataclass(frozen=True)
class Finding:
    """One limit kept or broken, and why, in words."""

    limit: str
    passed: bool
    words: str


@dataclass(frozen=True)
class Verdict:
    """Whether every limit was kept; a gate that asks nothing lets everything pass."""

    candidate: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.candidate}: passes: gate in params.yaml asks nothing"
        lines = [f"  {'passes' if f.passed else 'FAILS '}  {f.limit}: {f.words}" for f in self.findings]
        return "\n".join([f"{self.candidate}: {'passes' if self.passed else 'is rejected'}", *lines])


class _UnknownError(Exception):
    """A limit cannot be judged; the message says why."""


@dataclass(frozen=True)
class _Rule:
    """How one limit is measured, and how its numbers are written."""

    what: str
    measure: Callable[[Measured, Measured | None], Interval]
    write: Format


def judge(gate: Gate, candidate: Measured, opponents: Opponents) -> Verdict:
    """The verdict on the candidate; equal arguments give equal verdicts."""
    findings = [_finding(name, limit, candidate, opponents) for name, limit in gate.asked.items()]
    proven = [_proven(gate.proof, candidate)] if gate.proof else []
    return Verdict(candidate.name, (*findings, *proven))


def _proven(asked: Proof, candidate: Measured) -> Finding:
    """Whether the engine agreed on this artifact in every way that is asked for."""
    variant = candidate.report.get("variant", candidate.name)
    remedy = f"run on a GPU: turbopress conformance {variant} {asked.options} (dvc repro registers what it finds)"
    refused = refusal(candidate.proof, candidate.artifact, asked.ways, remedy)
    agreed = f"the engine agrees in all {len(asked.ways)} ways that are asked for"
    return Finding("proof", refused is None, refused or agreed)


def _finding(name: str, limit: Limit, candidate: Measured, opponents: Opponents) -> Finding:
    """A limit held against the base needs only the candidate's report, which was measured beside the base."""
    opponent = opponents.get(limit.against) if limit.against == "champion" or name in OF_BOTH else None
    if opponent is None and limit.against == "champion":
        return Finding(name, True, "there is no champion to be held against yet")
    rule = _RULES[name]
    try:
        interval = rule.measure(candidate, opponent)
    except (_UnknownError, SpeedsDifferError) as unknown:
        return Finding(name, False, str(unknown))
    is_most = name.startswith("most")
    passed = interval.high <= limit.limit if is_most else interval.low >= limit.limit
    asked = f"at {'most' if is_most else 'least'} {rule.write(limit.limit)} asked"
    return Finding(
        name,
        passed,
        f"{rule.what} against {opponent.name if opponent else BASE} is {_words(interval, rule.write)}; {asked}",
    )


def _words(interval: Interval, write: Format) -> str:
    if interval.low == interval.high:
        return write(interval.value)
    return f"{write(interval.value)} (95 %: {write(interval.low)} to {write(interval.high)})"


def _kl(candidate: Measured, opponent: Measured | None) -> Interval:
    if opponent is None:
        return _alone(candidate, kl_nats)
    return _paired(candidate, opponent, lambda a, b: kl_nats(a) - kl_nats(b))


def _rise(candidate: Measured, opponent: Measured | None) -> Interval:
    if opponent is None:
        return _alone(candidate, lambda s: perplexity(s) / base_perplexity(s) - 1)
    return _paired(candidate, opponent, lambda a, b: perplexity(a) / perplexity(b) - 1)


def _agreement(candidate: Measured, opponent: Measured | None) -> Interval:
    if opponent is None:
        return _alone(candidate, top1_agreement)
    return _paired(candidate, opponent, lambda a, b: top1_agreement(a) - top1_agreement(b))


def _size(candidate: Measured, opponent: Measured | None) -> Interval:
    ours, theirs = (measured.report["metrics"].get("size_bytes") for measured in _both(candidate, opponent))
    if not ours or not theirs:
        raise _UnknownError("the size was not measured; evaluate again")
    return Interval(ours / theirs, ours / theirs, ours / theirs)


def _speed(candidate: Measured, opponent: Measured | None) -> Interval:
    ours, theirs = _both(candidate, opponent)
    return speed_ratio(ours.name, ours.report.get("speed"), theirs.name, theirs.report.get("speed"))


def _both(candidate: Measured, opponent: Measured | None) -> tuple[Measured, Measured]:
    if opponent is None:
        raise _UnknownError(f"{BASE} has no report; evaluate it, or register it")
    return candidate, opponent


def _alone(candidate: Measured, statistic: Callable[[Sums], np.ndarray]) -> Interval:
    if candidate.documents is None:
        raise _UnknownError(f"{candidate.name} has no sums of documents to draw an interval from; evaluate again")
    return bootstrap(statistic, candidate.sums)


def _paired(candidate: Measured, opponent: Measured, statistic: Callable[[Sums, Sums], np.ndarray]) -> Interval:
    if not candidate.is_on_same_text(opponent):
        raise _UnknownError(
            f"{candidate.name} and {opponent.name} were not measured on the same text; evaluate both again"
        )
    return bootstrap(statistic, candidate.sums, opponent.sums)


def _plain(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.2f} %"


_RULES = {
    "most_kl_nats": _Rule("KL in nats a token", _kl, _plain),
    "most_perplexity_rise": _Rule("the rise of perplexity", _rise, _signed_percent),
    "least_top1_agreement": _Rule("top-1 agreement", _agreement, _percent),
    "most_size_ratio": _Rule("the size as a share", _size, _percent),
    "least_speed_ratio": _Rule("the worst speed as a share", _speed, _percent),
}
