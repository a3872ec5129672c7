"""Which layers of an unfinished model are done: a killed run goes on behind the last of them.

A layer is done when its shard is whole and its entry here lies beside it. What the layers before gave to the windows
is not stored: running the windows through the stored layers again gives the same numbers, and costs a small part of
rounding them.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoint.write import ModelWriter

Row = Mapping[str, Any]


class Journal:
    """Entries of finished layers, in a folder of their own: the model's folder holds nothing but the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def entry(self, layer: int) -> list[Row] | None:
        """What was noted of a finished layer, or None where it is not finished."""
        path = self._path(layer)
        rows: list[Row] | None = json.loads(path.read_text("utf8")) if path.exists() else None
        return rows

    def finished(self, layer: int, writer: ModelWriter) -> tuple[list[Row], dict[str, Tensor]] | None:
        """What a run before this one noted of a layer, and its tensors; None where the layer is to be made."""
        rows = self.entry(layer) if writer.has_layer(layer) else None
        return None if rows is None else (rows, writer.stored_layer(layer))

    def finish(self, layer: int, rows: Sequence[Row]) -> None:
        """Notes a layer whose shard is written."""
        self._write(self._path(layer), rows)

    def decision(self) -> list[tuple[int, str]] | None:
        """The linears that were chosen to stay in 16 bits, or None where nobody has chosen yet."""
        path = self.folder / "kept.json"
        return [(layer, linear) for layer, linear in json.loads(path.read_text("utf8"))] if path.exists() else None

    def decide(self, kept: Sequence[tuple[int, str]]) -> None:
        """Notes the choice."""
        self._write(self.folder / "kept.json", kept)

    def close(self) -> None:
        """Forgets everything: the model stands where it belongs."""
        shutil.rmtree(self.folder)

    def _write(self, path: Path, rows: Sequence[Any]) -> None:
        incoming = path.with_suffix(".incoming")
        incoming.write_text(json.dumps(list(rows)), "utf8")
        os.replace(incoming, path)

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.json"
