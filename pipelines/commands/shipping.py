"""`export`, `rollback`, `releases`, `gc`: what servers read, and going back."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.output import AsJson, console, print_json
from pipelines.commands.transfer import showing
from pipelines.params import ParamsError
from pipelines.profiles import profile_for
from pipelines.stage import repository_root
from registry.manifest import MANIFEST, SIGNATURE, read
from registry.ship.health import Server, switch_safely
from registry.ship.place import RELEASES, Place, explained_place, open_place
from registry.ship.serving_files import read_profile, serving_files
from registry.ship.upkeep import collect_garbage, verify_releases
from registry.ship.upkeep import releases as listed_releases
from registry.ship.upkeep import rollback as go_back
from registry.ship.verbs import Exported, Plan, plan
from registry.ship.verbs import export as send

To = Annotated[str, typer.Option("--to", help="a folder, sftp://[USER@]HOST[:PORT]/FOLDER or s3://BUCKET/FOLDER")]
Restart = Annotated[str | None, typer.Option(help="a command that makes the server take the current release")]
Health = Annotated[str | None, typer.Option(help="an address that answers 200 when the server is well")]
Wait = Annotated[float, typer.Option(min=0.1, help="seconds until the server must be well")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]


def export(
    reference: Annotated[str, typer.Argument(help="NAME@ALIAS, NAME/VERSION, or an artifact's folder")],
    to: To,
    profile: Annotated[
        Path | None, typer.Option(help="a YAML file of engine options, over `serve` of params.yaml")
    ] = None,
    dry_run: DryRun = False,
    restart: Restart = None,
    health: Health = None,
    wait: Wait = 600,
    as_json: AsJson = False,
) -> None:
    """Send a model to TO/releases/DIGEST, verify it there, and switch TO/current to it in one step."""
    with at(to) as place:
        folder, name, of = _source(reference)
        told, engine = profile_for(folder, read_profile(profile) if profile else {}, str(profile))
        made = serving_files(name, told.model_dump(exclude_none=True), engine) | _signature(Path(reference))
        if dry_run:
            _tell_plan(place, plan(place, folder, of, made), as_json)
            return
        with showing(Exported.how) as watcher:
            done = switched(
                place, lambda: send(place, folder, of=of, made=made, watcher=watcher), restart, health, wait
            )
    tell(done, as_json)


def push(
    reference: Annotated[str, typer.Argument(help="NAME@ALIAS, NAME/VERSION, or an artifact's folder")],
    to: Annotated[str, typer.Option("--to", help="oci://HOST/NAME:TAG or hf://ORG/NAME[@BRANCH]")],
    as_json: AsJson = False,
) -> None:
    """Push a model to an OCI registry (ModelPack's layout, a layer a file) or to a Hugging Face hub (one commit)."""
    from registry.hub import push_to_hub  # noqa: PLC0415 - slow to import, both
    from registry.oci import push as push_layers  # noqa: PLC0415

    folder = _source(reference)[0]
    if to.startswith("hf://"):
        committed = push_to_hub(folder, to, _measured(reference))
        if as_json:
            print_json({"address": to, "commit": committed.url})
        else:
            print(committed)
        return
    done = push_layers(folder, to)
    if as_json:
        print_json({"address": done.address, "digest": done.digest, "sent_bytes": done.sent_bytes})
    else:
        print(done)


def rollback(
    to: To,
    release: Annotated[str | None, typer.Option(help="the digest, or its beginning, of another than the last")] = None,
    restart: Restart = None,
    health: Health = None,
    wait: Wait = 600,
    as_json: AsJson = False,
) -> None:
    """Make the release current again that was current before this one."""
    with at(to) as place:
        done = switched(place, lambda: go_back(place, release), restart, health, wait)
    tell(done, as_json)


def releases(
    to: To,
    verify: Annotated[bool, typer.Option("--verify", help="read every byte of every release")] = False,
    as_json: AsJson = False,
) -> None:
    """List the releases at a place, the current one last."""
    with at(to) as place:
        found = verify_releases(place) if verify else listed_releases(place)
    if as_json:
        print_json([{"digest": r.digest, "of": r.record.of, "size_bytes": r.record.size_bytes,
                     "artifact": r.record.artifact, "current": r.is_current} for r in found])  # fmt: skip
        return
    for r in found:
        mark = "current" if r.is_current else ""
        console().print(f"{r.digest[:12]}  {r.record.size_bytes:>15,} bytes  {r.record.of}  {mark}", soft_wrap=True)


def gc(
    to: To,
    keep: Annotated[int, typer.Option(help="releases that stay, the current one among them")] = 3,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="uploads that did not end as well")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove releases that were current long ago."""
    with at(to) as place:
        removed = collect_garbage(place, keep, unfinished=unfinished, dry_run=dry_run)
    if as_json:
        print_json(removed)
        return
    print(f"{place.url}: {'would remove' if dry_run else 'removed'} {', '.join(removed) or 'nothing'}")


@contextmanager
def at(to: str) -> Iterator[Place]:
    """The place, whose refusals come out in one line."""
    with explained_place(to):
        yield open_place(to)


def _source(reference: str) -> tuple[Path, str, str]:
    """The artifact's folder, the name that a server gives the model, and what the record says of its origin."""
    if (Path(reference) / MANIFEST).is_file():
        folder = Path(reference)
        return folder, folder.resolve().name, f"{read(folder).kind} {folder.resolve().name}"
    from registry.resolve import resolve_version  # noqa: PLC0415 - MLflow is slow to import

    folder, version = resolve_version(reference, root=repository_root())
    return folder, version.model, f"{version.model}/{version.number} ({version.variant})"


def _measured(reference: str) -> str | None:
    """The table that a registered version shows; a folder that no registry knows has none."""
    if (Path(reference) / MANIFEST).is_file():
        return None
    from registry.resolve import resolve_version  # noqa: PLC0415 - MLflow is slow to import

    metrics = resolve_version(reference, root=repository_root())[1].metrics
    rows = [f"| {name} | {value:,.6g} |" for name, value in sorted(metrics.items())]
    return "\n".join(["| metric | value |", "| --- | ---: |", *rows]) if rows else None


def _signature(folder: Path) -> dict[str, bytes]:
    """What `turbopress sign` wrote beside a folder; the signature of a registered version lies in it, or nowhere."""
    beside = folder.with_name(f"{folder.name}.sig") if folder.name else None
    return {SIGNATURE: beside.read_bytes()} if beside and beside.is_file() else {}


def switched(
    place: Place, switch: Callable[[], Exported], restart: str | None, health: str | None, wait: float
) -> Exported:
    """A switch that is taken back where it leaves the server ill."""
    if restart and not health:
        raise ParamsError("--restart: needs --health too, an address that tells whether the server is well")
    return switch_safely(place, switch, Server(tuple(shlex.split(restart or "")), health, wait))


def tell(done: Exported, as_json: bool) -> None:
    """Where a release now is, and what it took."""
    if as_json:
        print_json({"release": f"{done.url}/{RELEASES}/{done.digest}", "digest": done.digest, "before": done.before,
                    f"{done.how}_bytes": done.sent_bytes, "reused_bytes": done.reused_bytes})  # fmt: skip
    else:
        print(done)


def _tell_plan(place: Place, planned: Plan, as_json: bool) -> None:
    files = planned.parcel.record.files
    said = {
        "release": f"{place.url}/{RELEASES}/{planned.parcel.record.digest}",
        "send_bytes": planned.send_bytes,
        "send": {name: files[name].size_bytes for name in planned.send},
        "reuse": dict(planned.take),
        "current": planned.is_current,
    }
    if as_json:
        print_json(said)
        return
    for name, size in said["send"].items():  # type: ignore[attr-defined]  # a dict, as written above
        print(f"would send {size:>15,}  {name}", file=sys.stdout)
    if planned.is_current:
        print(f"{said['release']}: is current already; nothing would be done")
    else:
        reused = f", {len(planned.take)} files are there in other releases" if planned.take else ""
        print(f"{said['release']}: would send {planned.send_bytes:,} bytes{reused}, and would become current")
