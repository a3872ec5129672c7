"""`turbopress web`: the chat page for variants, folders, registered versions or running servers."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import CompressError
from pipelines.about import about_served, about_stored, reports
from pipelines.chat import open_engine
from pipelines.folders import model_folder
from pipelines.params import ParamsError
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
    card: Annotated[
        list[str] | None,
        typer.Option(help="what a server serves, where its model's name does not say: a variant, a folder, NAME@ALIAS"),
    ] = None,
) -> None:
    """Open the chat page: stream, stop, regenerate, and two variants side by side on one prompt."""
    page = build_page(models, card or [], images=images)
    require_free(host, port)
    from serving.web.page import CSS  # noqa: PLC0415 - the extra [web]

    page.launch(server_name=host, server_port=port, quiet=True, css=CSS, footer_links=[], prevent_thread_lock=True)
    print(f"the page is at http://{host}:{port}; Ctrl-C ends it", flush=True)
    page.block_thread()


def build_page(models: list[str], cards: Sequence[str] = (), *, images: bool = False) -> "gradio.Blocks":
    """The page for these names, and what the servers among them serve, in their order; whatever is wrong with one is
    said before it opens.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ServingError("web: gradio is not installed; pip install 'turbopress[web]'")
    from serving.web.page import build  # noqa: PLC0415 - the extra [web]

    addresses = [model for model in models if is_address(model)]
    if len(cards) > len(addresses):
        raise ParamsError(
            f"--card {cards[len(addresses)]}: is of no server; give one for each http://HOST:PORT, or none"
        )
    told = dict(zip(addresses, cards, strict=False))
    return build([_offer(model, told.get(model), images=images) for model in models], _table())


def _offer(model: str, card: str | None, *, images: bool) -> "Offer":
    from serving.web.offers import Offer  # noqa: PLC0415

    opened = partial(_opened, model)
    if is_address(model) and card is None:
        return Offer(model, opened, partial(about_served, model), images)
    folder = model_folder(card or model)
    return Offer(model, opened, partial(about_stored, card or model, folder), read_shape(folder).sees_images)


def _opened(model: str) -> "Engine":
    """The model ready; whatever is wrong with it is the page's to show."""
    try:
        return open_engine(model)
    except (CompressError, RegistryError, ParamsError, OSError) as error:
        raise ServingError(" ".join(str(error).split())) from error


def _table() -> str:
    """The comparison of all variants, where there is one."""
    page = reports() / "summary.md"
    return page.read_text("utf8") if page.is_file() else ""
