"""`turbopress web`: the chat page for variants, folders, registered versions or running servers."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import CompressError
from pipelines.chat import open_engine
from pipelines.folders import model_folder
from pipelines.params import ParamsError
from pipelines.stage import repository_root
from registry.errors import RegistryError
from serving.client import is_address
from serving.errors import ServingError
from serving.server import LAST_PORT, LOOPBACK, require_free
from serving.shape import read_shape

if TYPE_CHECKING:
    import gradio

    from serving.engine import Engine
    from serving.web.offers import Offer

PAGE_PORT = 7860


def web(
    models: Annotated[
        list[str], typer.Argument(help="variants, folders, NAME@ALIAS or http://HOST:PORT; two to compare")
    ],
    host: Annotated[str, typer.Option(help="who may connect; this machine alone, unless told otherwise")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=LAST_PORT)] = PAGE_PORT,
    images: Annotated[bool, typer.Option(help="a server among them takes images")] = False,
) -> None:
    """Open the chat page: stream, stop, regenerate, and two variants side by side on one prompt."""
    page = build_page(models, images=images)
    require_free(host, port)
    from serving.web.page import CSS  # noqa: PLC0415 - the extra [web]

    page.launch(server_name=host, server_port=port, quiet=True, css=CSS, footer_links=[], prevent_thread_lock=True)
    print(f"the page is at http://{host}:{port}; Ctrl-C ends it", flush=True)
    page.block_thread()


def build_page(models: list[str], *, images: bool = False) -> "gradio.Blocks":
    """The page for these names; whatever is wrong with one is said before it opens."""
    if importlib.util.find_spec("gradio") is None:
        raise ServingError("web: gradio is not installed; pip install 'turbopress[web]'")
    from serving.web.page import build  # noqa: PLC0415 - the extra [web]

    return build([_offer(model, images=images) for model in models], _table())


def _offer(model: str, *, images: bool) -> "Offer":
    from serving.web.offers import Offer, read_card  # noqa: PLC0415

    if is_address(model):
        return Offer(model, partial(_opened, model), f"Served at {model}", images)
    folder = model_folder(model)
    key = model.rsplit("@", 1)[-1].rstrip("/").rsplit("/", 1)[-1]
    card = read_card(folder, _reports() / f"{key}.json")
    return Offer(model, partial(_opened, model), card, read_shape(folder).sees_images)


def _opened(model: str) -> "Engine":
    """The model ready; whatever is wrong with it is the page's to show."""
    try:
        return open_engine(model)
    except (CompressError, RegistryError, ParamsError, OSError) as error:
        raise ServingError(" ".join(str(error).split())) from error


def _table() -> str:
    """The comparison of all variants, where there is one."""
    page = _reports() / "summary.md"
    return page.read_text("utf8") if page.is_file() else ""


def _reports() -> Path:
    """Where the pipeline writes what it measured; outside a repository, a folder that is not there."""
    try:
        return repository_root() / "reports"
    except ParamsError:
        return Path("reports")
