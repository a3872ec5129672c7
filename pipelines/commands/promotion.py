"""`gate` and `promote`: only what is proven good gets an alias that servers follow."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.output import AsJson, print_json
from pipelines.gate import Verdict, judge
from pipelines.limits import Gate
from pipelines.measured import Measured, read_local
from pipelines.params import ParamsError, load
from pipelines.stage import repository_root
from registry.conformance import path_beside, read_content
from registry.measurements import Measurement
from registry.promote import Contest, Decision, Promoted
from registry.promote import promote as move_alias
from registry.versions import Version

REJECTED = 3  # exit status: the gate said no, and nothing moved


def gate(
    variant: Annotated[str, typer.Argument(help="a variant of params.yaml that was evaluated")],
    champion: Annotated[str | None, typer.Option(help="another evaluated variant to hold it against")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a variant by its report here, as params.yaml's gate asks; exit status 3 when it is rejected."""
    root = repository_root()
    asked = load(root).gate
    opponents = {"base": read_local(root, "base"), "champion": read_local(root, champion) if champion else None}
    verdict = judge(asked, _candidate(root, variant, asked), opponents)  # type: ignore[arg-type]  # the two opponents
    if as_json:
        print_json(_verdict_json(verdict))
    else:
        print(verdict)
    if not verdict.passed:
        raise typer.Exit(REJECTED)


def _candidate(root: Path, variant: str, asked: Gate) -> Measured:
    """The variant as it was measured here, with what the engine found where that is asked for."""
    found = read_local(root, variant)
    proof = read_content(path_beside(root / "reports" / f"{variant}.json")) if asked.proof else None
    return replace(found, proof=proof)


def promote(
    reference: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME/VERSION of the candidate")],
    to: Annotated[str, typer.Option("--to", help="the alias that is to move")] = "champion",
    force: Annotated[bool, typer.Option("--force", help="move it although the gate says no; needs --why")] = False,
    why: Annotated[str | None, typer.Option(help="kept with the version, beside your name")] = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version if it passes the gate; exit status 3 when it is rejected and nothing moved."""
    if force and not (why and why.strip()):
        raise ParamsError("--force: says that the gate is wrong, so it needs a reason; add --why 'REASON'")
    root = repository_root()
    asked = load(root).gate
    verdicts: list[Verdict] = []

    def decide(contest: Contest) -> Decision:
        verdicts.append(judge_contest(asked, contest))
        return Decision(verdicts[0].passed, str(verdicts[0]))

    promoted = move_alias(reference, root=root, to=to, judge=decide, why=why if force else None)
    if as_json:
        print_json(_promoted_json(promoted, verdicts[0]))
    else:
        print(verdicts[0])
        print(_sentence(promoted))
    if not promoted.is_champion:
        raise typer.Exit(REJECTED)


def judge_contest(asked: Gate, contest: Contest) -> Verdict:
    """The verdict on a registered candidate, from what the registry holds of it and of its opponents."""
    base = contest.base_measured
    champion, measured = contest.champion, contest.champion_measured
    opponents = {
        "base": Measured("base", base.report, base.documents) if base else None,
        "champion": _of(champion, measured) if champion and measured else None,
    }
    return judge(asked, _of(contest.candidate, contest.candidate_measured), opponents)  # type: ignore[arg-type]  # as above


def _of(version: Version, measurement: Measurement) -> Measured:
    name = f"{version.variant} v{version.number}"
    return Measured(name, measurement.report, measurement.documents, version.digest, measurement.proof)


def _sentence(promoted: Promoted) -> str:
    name = f"{promoted.candidate.model}@{promoted.alias}"
    new = f"v{promoted.candidate.number} ({promoted.candidate.variant})"
    old = f"v{promoted.champion.number} ({promoted.champion.variant})" if promoted.champion else "nothing"
    if promoted.move is None:
        return f"{name}: is {old} already" if promoted.is_champion else f"{name}: stays {old}"
    how = f", forced by {promoted.move.by}: {promoted.move.why}" if promoted.move.forced else ""
    return f"{name}: was {old}, is {new}{how}"


def _promoted_json(promoted: Promoted, verdict: Verdict) -> dict[str, Any]:
    return {
        "model": promoted.candidate.model,
        "alias": promoted.alias,
        "candidate": promoted.candidate.number,
        "champion_before": promoted.champion.number if promoted.champion else None,
        "moved": promoted.move is not None,
        "move": asdict(promoted.move) if promoted.move else None,
        "verdict": _verdict_json(verdict),
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "passed": verdict.passed}
