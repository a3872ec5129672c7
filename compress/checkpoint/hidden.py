"""The residual stream of all calibration windows, kept on the host and lent to the device a batch at a time.

On a GPU the next batch is on its way while the present one is computed on, and results go back behind it. Where the
host has too little memory, the windows lie in a file that has no name any more: it goes with the process.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

Hidden = Float[Tensor, "windows length hidden"]


class HiddenStates:
    """Windows (windows, length, hidden) of `dtype` on the host; batches of them arrive on `device`."""

    def __init__(self, values: Hidden, device: str, batch: int) -> None:
        self.values, self.device, self.batch = values, torch.device(device), batch
        self._lanes = [torch.cuda.Stream(self.device) for _ in range(2)] if self._on_gpu else []

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def __len__(self) -> int:
        return self.values.shape[0]

    def slices(self) -> list[slice]:
        """Which windows each batch holds."""
        return [slice(start, min(start + self.batch, len(self))) for start in range(0, len(self), self.batch)]

    def batches(self) -> Iterator[tuple[slice, Hidden]]:
        """Each batch on the device, with its place."""
        if not self._on_gpu:
            yield from ((at, self.values[at].to(self.device)) for at in self.slices())
            return
        coming, going = self._lanes
        coming.wait_stream(going)
        places = self.slices()
        ahead = self._fetch(places[0])
        for number, at in enumerate(places):
            torch.cuda.current_stream(self.device).wait_stream(coming)
            here, ahead = ahead, self._fetch(places[number + 1]) if number + 1 < len(places) else ahead
            yield at, here

    def _fetch(self, at: slice) -> Hidden:
        with torch.cuda.stream(self._lanes[0]):
            batch = self.values[at].to(self.device, non_blocking=True)
        batch.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def put_(self, at: slice, batch: Hidden) -> None:
        """Takes a batch's place on the host; it is there when the next pass begins."""
        if not self._on_gpu:
            self.values[at] = batch
            return
        going = self._lanes[1]
        going.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(going):
            self.values[at].copy_(batch, non_blocking=True)
        batch.record_stream(going)

    def settle(self) -> None:
        """Waits until everything put is there, for those who read `values` themselves."""
        for lane in self._lanes:
            lane.synchronize()


def unlinked_file(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """Room for windows in a file below `folder` that has no name any more."""
    size = torch.Size(shape).numel()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".activations-") as file:
        file.truncate(size * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)
