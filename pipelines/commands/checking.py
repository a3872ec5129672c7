"""What `verify` does beyond reading the bytes, and `sign`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.stage import repository_root
from registry.manifest import read
from registry.signing import sign as write_signature
from registry.signing import signature_of, verify_signature


def sign(
    folder: Annotated[Path, typer.Argument(help="an artifact")],
    key: Annotated[Path, typer.Option(help="an elliptic-curve private key in PEM")],
) -> None:
    """Vouch for an artifact: write FOLDER.sig, an OpenSSF model signature, which `export` sends along."""
    signature = folder.with_name(f"{folder.name}.sig")
    write_signature(folder, key, signature)
    print(f"{signature}: every file of {folder} is signed")


def check_signature(folder: Path, public_key: Path) -> None:
    """Refuses a folder that the owner of the key did not sign as it is."""
    verify_signature(folder, public_key, signature_of(folder))
    print(f"{folder}: signed by the owner of {public_key}", file=sys.stderr)


def text_named(digest: str, data: Path) -> Path:
    """The text here that has this digest; the calibration text where none has, so that its own is told."""
    texts = (about.parent for about in sorted(data.glob("*/corpus.json")) if digest in about.read_text("utf8"))
    return next(texts, data / "calibration")


def rederive_layers(folder: Path, count: int, parent: Path | None, calibration: Path | None) -> None:
    """Quantizes random layers of the artifact again; what is needed for it is looked for in this repository."""
    from pipelines.rederive import rederive  # noqa: PLC0415 - torch is slow to import

    places = [parent] if parent else sorted((repository_root() / "models").iterdir())
    windows = calibration or text_named(str(read(folder).data.get("calibration")), repository_root() / "data")
    again = rederive(folder, count, places, windows)
    layers = ", ".join(map(str, again.layers))
    same = "are byte for byte the same"
    if again.elsewhere:
        same = f"lose as much as the stored ones; bytes are not compared: it was made on {again.elsewhere}"
    print(f"{folder}: made again, layers {layers} {same}", file=sys.stderr)
