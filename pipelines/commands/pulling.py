"""`pull`: a release from where it was exported to a folder of this machine."""

from typing import Annotated

import typer

from pipelines.commands.output import AsJson
from pipelines.commands.shipping import Health, Restart, Wait, at, switched, tell
from pipelines.commands.transfer import showing
from pipelines.params import ParamsError
from registry.ship.folder import FolderPlace
from registry.ship.pull import Pulled
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
        with showing(Pulled.how) as watcher:
            done = switched(here, lambda: fetch(far, here, release=release, watcher=watcher), restart, health, wait)
    tell(done, as_json)
