"""What the chat page tells of a model: of one that is stored here, and of one that a server calls by a name."""

from dataclasses import replace
from pathlib import Path

from pipelines.params import ParamsError, load
from pipelines.stage import repository_root
from registry.errors import RegistryError
from serving.client import Client
from serving.errors import ServingError
from serving.web.offers import About, read_card


def about_stored(model: str, folder: Path) -> About:
    """The card of a folder, and what the pipeline measured of the variant that is so named."""
    key = model.rsplit("@", 1)[-1].rstrip("/").rsplit("/", 1)[-1]
    return About(read_card(folder, reports() / f"{key}.json"), folder)


def about_served(address: str) -> About:
    """What stands here under the name by which the server calls its model, or why there is nothing."""
    try:
        name = Client(address).name
    except ServingError as error:
        return About(f"No card: {error}")
    try:
        about = about_stored(name, _folder(name))
    except (ParamsError, RegistryError) as error:
        return About(f"No card: {address} calls its model `{name}`. {error}")
    return replace(about, card=f"{address} calls its model `{name}`. This stands here under that name:\n\n{about.card}")


def _folder(name: str) -> Path:
    """The folder of a variant or of a registered version; a server's word opens no other, and fetches nothing."""
    root = repository_root()
    if "@" in name:
        from registry.resolve import find_here  # noqa: PLC0415 - MLflow is slow to import

        folder = find_here(name, root=root)
    else:
        folder = root / "models" / name if name in load(root).variants else None
    if folder is None or not folder.is_dir():
        raise ParamsError("No variant or registered version of that name is on this machine; --card says what it is")
    return folder


def reports() -> Path:
    """Where the pipeline writes what it measured; outside a repository, a folder that is not there."""
    try:
        return repository_root() / "reports"
    except ParamsError:
        return Path("reports")
