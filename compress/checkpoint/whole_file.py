"""A safetensors file that is written whole or not at all, however the writing ends."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from compress.errors import CompressError, first_line


def write_whole(
    path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None, *, kept: str | None = None
) -> None:
    """The file holds the tensors; where they find no room, what it held before.

    `about` lies in its header. `kept` says to whoever has to free space what is not lost by it.
    """
    incoming = path.with_suffix(".incoming")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, incoming, about)
    except (OSError, SafetensorError) as error:  # safetensors wraps the operating system's errors in its own
        incoming.unlink(missing_ok=True)
        remedy = "free space and run again" + (f", {kept}" if kept else "")
        raise CompressError(f"{path}: not written ({first_line(error)}); {remedy}") from None
    os.replace(incoming, path)
