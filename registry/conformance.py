"""Proof that the engine gets from an artifact the numbers that we say it holds, as a gate may demand it.

`turbopress conformance` writes REPORTS/NAME.conformance.json beside the report, and registering takes it along. It
counts for one artifact only: the digest inside must be the artifact's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from registry.errors import RegistryError

SUFFIX = ".conformance.json"
ALIKE = ("artifact", "engine", "windows", "thresholds")  # what two proofs have in common whose cases make one
REMEDY = "remove it, and run turbopress conformance again"


class Way(NamedTuple):
    """One way to serve: the layout on disk, the bits of the KV cache, the number of GPUs."""

    layout: str
    kv_bits: int
    tp: int

    def __str__(self) -> str:
        return f"layout {self.layout}, KV {self.kv_bits}, tp {self.tp}"


class Case(BaseModel):
    """What the engine got when served in one way, and what our unpacked weights say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str
    kv_bits: int
    tp: int
    perplexity: float | None = None
    engine_perplexity: float | None = None
    top1_agreement: float | None = None
    greedy_agreement: float | None = None
    greedy_margin: float | None = None  # logits by which our token beats the engine's where texts first differ, at most
    kl_nats: float | None = None  # from our simulation of the same KV cache to the engine, nats a token
    kl_to_16_nats: float | None = None  # from our weights with a KV cache of 16 bits to the engine: what this one costs
    simulated_kl_to_16_nats: float | None = None  # the same of our simulation
    passed: bool
    reason: str = ""  # why not

    @property
    def way(self) -> Way:
        return Way(self.layout, self.kv_bits, self.tp)


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


def read_content(path: Path) -> dict[str, Any] | None:
    """The object in a proof's file, whatever it says; None where there is no file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise RegistryError(f"{path}: is not JSON ({error}); {REMEDY}") from None
    if not isinstance(content, dict):
        raise RegistryError(f"{path}: holds a {type(content).__name__}, no proof; {REMEDY}")
    return content


def read_proof(path: Path) -> Conformance | None:
    """The proof in a file; None where there is no file."""
    content = read_content(path)
    try:
        return None if content is None else Conformance.model_validate(content)
    except ValidationError as error:
        raise RegistryError(f"{path}: {_first(error)}; {REMEDY}") from None


def parsed(content: Mapping[str, Any] | None) -> Conformance | None:
    """The proof that such an object is; None where it is none, or of a later make than this code."""
    try:
        return None if content is None else Conformance.model_validate(content)
    except ValidationError:
        return None


def merged(earlier: Conformance | None, newer: Conformance) -> Conformance:
    """The newer proof with what the earlier one says of other ways, where both are of one artifact, asked alike."""
    if earlier is None or any(getattr(earlier, name) != getattr(newer, name) for name in ALIKE):
        return newer
    cases = [*{case.way: case for case in (*earlier.cases, *newer.cases)}.values()]
    return newer.model_copy(
        update={
            "device": ", ".join(dict.fromkeys([*earlier.device.split(", "), newer.device])),
            "passed": all(case.passed for case in cases),
            "cases": cases,
            "refused": list(dict.fromkeys([*earlier.refused, *newer.refused])),
        }
    )


def refusal(content: Mapping[str, Any] | None, digest: str | None, ways: Sequence[Way], remedy: str) -> str | None:
    """Why the artifact is not proven in all these ways, in words with the remedy; None where it is."""
    if content is None:
        return f"there is no proof in the engine; {remedy}"
    try:
        proof = Conformance.model_validate(content)
    except ValidationError as error:
        return f"the proof cannot be read ({_first(error)}); {remedy}"
    if proof.artifact != digest:
        return f"the proof is of artifact {proof.artifact[:12]}, not of {(digest or 'unknown')[:12]}; {remedy}"
    found = {case.way: case for case in proof.cases}
    if failed := [f"{way} ({found[way].reason})" for way in ways if way in found and not found[way].passed]:
        return f"the engine disagrees on {'; '.join(failed)}; make the variant anew, or do not serve it so"
    if missing := [str(way) for way in ways if way not in found]:
        left_out = f" (left out: {'; '.join(proof.refused)})" if proof.refused else ""
        return f"the proof is silent on {'; '.join(missing)}{left_out}; {remedy}"
    return None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
