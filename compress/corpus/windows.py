"""Token windows as a value, and on disk: windows.safetensors beside corpus.json."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from compress.errors import CompressError, first_line


@dataclass(frozen=True)
class Windows:
    """Token windows (count, length), the domain of each; for each token the number of the document that it is from,
    and whether it counts (all do, where there is no mask)."""

    tokens: np.ndarray
    domains: list[str]
    documents: np.ndarray | None = None  # None in windows that were not cut from documents
    mask: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """sha256 of the token ids, and of which of them count where not all do: what makes measurements comparable."""
        digest = hashlib.sha256(self.tokens.astype("<i4").tobytes())
        if self.mask is not None:
            digest.update(self.mask.astype("u1").tobytes())
        return digest.hexdigest()

    @property
    def predicts(self) -> np.ndarray | None:
        """Which positions predict a token that counts; the last predicts none in its window, and counts as itself."""
        return None if self.mask is None else np.concatenate([self.mask[:, 1:], self.mask[:, -1:]], axis=1)


def save_windows(windows: Windows, folder: Path) -> None:
    """Writes windows.safetensors and corpus.json into a fresh folder."""
    columns = {"tokens": windows.tokens, "documents": windows.documents, "mask": windows.mask}
    arrays = {name: array for name, array in columns.items() if array is not None}
    try:
        save_file(arrays, folder / "windows.safetensors")
    except SafetensorError as error:  # the operating system's errors are wrapped in it
        raise CompressError(f"{folder}: not written ({first_line(error)}); free space and run again") from None
    count, length = windows.tokens.shape
    about = {"sha256": windows.digest, "windows": count, "length": length, "domains": windows.domains}
    if windows.mask is not None:
        about["counted_tokens"] = int(windows.mask.sum())
    (folder / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", "utf8")


def load_windows(folder: Path) -> Windows:
    """What `save_windows` wrote; refuses tokens that are not those that corpus.json names."""
    try:
        about = json.loads((folder / "corpus.json").read_text("utf8"))
        arrays = load_file(folder / "windows.safetensors")
        windows = Windows(arrays["tokens"], about["domains"], arrays.get("documents"), arrays.get("mask"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CompressError(f"{folder}: no windows ({first_line(error)}); run `dvc repro corpus` again") from None
    if windows.digest != about["sha256"]:
        raise CompressError(f"{folder}: token ids do not match corpus.json; run `dvc repro corpus` again")
    return windows
