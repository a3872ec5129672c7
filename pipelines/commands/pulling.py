"""`pull`: a release from where it was exported to a folder of this machine."""

from typing import Annotated

import typer

from pipelines.commands.output import AsJson, print_json
from pipelines.commands.shipping import Health, Restart, Wait, at, switched
from pipelines.commands.transfer import showing
from pipelines.params import ParamsError
from registry.ship.folder import FolderPlace
from registry.ship.place import RELEASES
from registry.ship.pull import pull as fetch


def pull(
    source: Annotated[str, typer.Option("--from", help="where it was exported to: s3://, sftp:// or a folder")],
    to: Annotated[str, typer.Option("--to", help="a folder of this machine")],
    release: Annotated[str | None, typer.Option(help="a digest or its beginning; the current one unless given")] = None,
    restart: Restart = None,
    health: Health = None,
    wait: Wait = 600,
    as_json: AsJson = False,
) -> None:
    """Fetch the current release to TO/releases/DIGEST, verify it there, and switch TO/current to it in one step."""
    with at(source) as far, at(to) as here:
        if not isinstance(here, FolderPlace):
            raise ParamsError(f"--to: {to}; choose a folder of this machine (turbopress export sends elsewhere)")
        with showing() as watcher:
            done = switched(here, lambda: fetch(far, here, release=release, watcher=watcher), restart, health, wait)
    if as_json:
        print_json({"release": f"{done.url}/{RELEASES}/{done.digest}", "digest": done.digest, "before": done.before,
                    "fetched_bytes": done.sent_bytes, "reused_bytes": done.reused_bytes})  # fmt: skip
        return
    told = f"fetched {done.sent_bytes:,} bytes" if done.sent_bytes else "was there already"
    reused = f", {done.reused_bytes:,} bytes were here in other releases" if done.reused_bytes else ""
    print(f"{done.url}/{RELEASES}/{done.digest}: {told}{reused}; current points at it")
