"""What the machine gives the quantizer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from compress.checkpoint.hidden import Hidden, HiddenStates, Shape, unlinked_file
from compress.quantize.host import free_memory
from compress.quantize.precision import float32_products, multiplies_bfloat16
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.workers import ALONE, Workers

SHARE_OF_MEMORY = 0.6  # of what is free: the weights of two layers and the libraries need the rest


def place_for_windows(
    windows: tuple[int, ...], hidden_size: int, recipe: AwqRecipe, resources: "Resources", folder: Path
) -> Path | None:
    """A folder on disk for the windows to wait in, or None where memory has room for them."""
    count, length = windows
    share = -(-count // resources.workers.count)
    copies = 1 + (recipe.feedback is not None) + 2 * isinstance(recipe.rounding, Learned)
    needed = copies * resources.host_bytes((share, length, hidden_size))
    return place_for(needed * resources.workers.count, folder)


def place_for(size_bytes: int, folder: Path) -> Path | None:
    """A folder on disk for so much to wait in, or None where memory has room for it."""
    return folder if size_bytes > SHARE_OF_MEMORY * free_memory() else None


@dataclass(frozen=True)
class Resources:
    """The result depends on these in the order of sums at most (`device`, `batch`, `workers`), or not at all."""

    device: str = "cpu"
    batch: int = 8  # windows on the device at a time
    prefetch: bool = True  # read the next layer's weights while one is at work
    disk: Path | None = None  # a folder: the windows wait in a file there instead of in memory
    near_bytes: int = 3 * 2**29  # of a GPU's memory in which windows may stay
    workers: Workers = ALONE

    @property
    def decides(self) -> dict[str, str | int | bool]:
        """What of all this decides an artifact's bytes: elsewhere sums come in another order, or are shorter."""
        said: dict[str, str | int | bool] = {"batch": self.batch, "workers": self.workers.count}
        if self.on_gpu:
            return said | {"device": torch.cuda.get_device_name(self.device)}
        instructions = torch.backends.cpu.get_cpu_capability()
        return said | {"device": f"cpu with {instructions}", "short_products": multiplies_bfloat16("cpu")}

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations: on a GPU what the artifact is served in."""
        return torch.float16 if self.on_gpu else torch.float32

    def host_bytes(self, shape: Shape) -> int:
        """What windows of this shape take of the host's memory, all of them there."""
        needed = math.prod(shape) * self.dtype.itemsize
        return 1 << (needed - 1).bit_length() if self.on_gpu else needed  # torch page-locks powers of two

    def room(self, shape: Shape, near_bytes: int = 0) -> HiddenStates:
        """Windows to be filled: on a GPU as many as `near_bytes` hold, others on the host or in an unlinked file."""
        windows, length, hidden = shape
        fitting = near_bytes // (self.batch * length * hidden * self.dtype.itemsize) if self.on_gpu else 0
        return HiddenStates(self._host, shape, self.device, self.batch, min(fitting, -(-windows // self.batch)))

    def _host(self, shape: Shape) -> Hidden:
        """Memory that a GPU reads without a copy between, or a file."""
        if self.disk is not None and shape[0]:
            return unlinked_file(shape, self.dtype, self.disk)
        return torch.empty(shape, dtype=self.dtype, pin_memory=self.on_gpu and shape[0] > 0)

    @contextmanager
    def products(self) -> Iterator[None]:
        """While open, float32 products run on the matrix units of a GPU."""
        with float32_products("high" if self.on_gpu else "highest"):
            yield


ON_CPU = Resources()
