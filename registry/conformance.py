"""Proof that the engine gets from an artifact the numbers that we say it holds, as a gate may demand it.

`turbopress conformance` writes REPORTS/NAME.conformance.json beside the report. It counts for one artifact only: the
digest inside must be the artifact's.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

SUFFIX = ".conformance.json"


class Case(BaseModel):
    """One way to serve: layout, bits of the KV cache, GPUs; what the engine got and what our unpacked weights say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str
    kv_bits: int
    tp: int
    perplexity: float | None = None
    engine_perplexity: float | None = None
    top1_agreement: float | None = None
    greedy_agreement: float | None = None
    passed: bool
    reason: str = ""  # why not


class Conformance(BaseModel):
    """What the file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str
    engine: str  # as "lmdeploy 0.18.0"
    device: str
    thresholds: dict[str, float]
    windows: str  # sha256 of the token ids
    passed: bool
    cases: list[Case]
    refused: list[str] = []  # ways that no server of ours would try, and why


def path_beside(report: Path) -> Path:
    """Where the proof of the variant lies whose report this is."""
    return report.with_name(report.stem + SUFFIX)


def refusal(report: Path, digest: str) -> str | None:
    """Why the artifact is not proven, in words with the remedy; None where it is."""
    place = path_beside(report)
    remedy = "run: turbopress conformance, on a GPU"
    try:
        proof = Conformance.model_validate_json(place.read_text("utf8"))
    except FileNotFoundError:
        return f"{place}: there is no proof in the engine; {remedy}"
    except ValidationError as error:
        first = error.errors()[0]
        return f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {remedy} again"
    if proof.artifact != digest:
        return f"{place}: is the proof of {proof.artifact}, not of {digest}; {remedy} again"
    failed = [f"layout {c.layout}, KV {c.kv_bits}, tp {c.tp}: {c.reason}" for c in proof.cases if not c.passed]
    return f"{place}: the engine disagrees: {'; '.join(failed)}" if failed else None
