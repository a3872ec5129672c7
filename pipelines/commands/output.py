"""What all verbs print with."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON value for programs")]
WIDTH = 140  # where nobody looks at a terminal


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Console:
    """The terminal, or a page wide enough for digests."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
