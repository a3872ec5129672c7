"""The residual stream of all calibration windows, kept on the host and lent to the device a batch at a time.

On a GPU the next batches are on their way while the present one is computed on, and results go back behind it. Some
batches may stay on the GPU: what does not cross the bus costs nothing. Where the host has too little memory, the
windows lie in a file that has no name any more: it goes with the process.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

Hidden = Float[Tensor, "windows length hidden"]
Shape = tuple[int, int, int]
Host = Callable[[Shape], Hidden]  # room on the host for so many
AHEAD = 2  # batches on their way, so that the bus is not idle while a batch that stays is at work


class HiddenStates:
    """Windows (windows, length, hidden), of which `num_near` batches stay on `device` and the others wait on the host.

    Those that stay are spread evenly among those that travel.
    """

    def __init__(self, host: Host, shape: Shape, device: str, batch: int, num_near: int = 0) -> None:
        self.shape, self.device, self.batch = shape, torch.device(device), batch
        self._lanes = [torch.cuda.Stream(self.device) for _ in range(2)] if self._on_gpu else []
        self._near: dict[int, Hidden | None] = {at.start: None for at in _spread(self.slices(), num_near)}
        travelling = [at for at in self.slices() if at.start not in self._near]
        counts = [at.stop - at.start for at in travelling]
        self._host = host((sum(counts), *shape[1:]))
        self._far = dict(zip((at.start for at in travelling), self._host.split(counts), strict=True))

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def __len__(self) -> int:
        return self.shape[0]

    def slices(self) -> list[slice]:
        """Which windows each batch holds."""
        return [slice(start, min(start + self.batch, len(self))) for start in range(0, len(self), self.batch)]

    def batches(self) -> Iterator[tuple[slice, Hidden]]:
        """Each batch on the device, with its place."""
        if not self._on_gpu:
            yield from ((at, self._home(at)) for at in self.slices())
            return
        coming, going = self._lanes
        coming.wait_stream(going)
        places, ahead = self.slices(), deque[tuple[Hidden, torch.cuda.Event]]()
        for number, at in enumerate(places):
            ahead.extend(self._fetch(later) for later in places[number + len(ahead) : number + AHEAD + 1])
            here, arrived = ahead.popleft()
            torch.cuda.current_stream(self.device).wait_event(arrived)
            yield at, here

    def _fetch(self, at: slice) -> tuple[Hidden, torch.cuda.Event]:
        """A batch on its way, and what happens when it is there."""
        with torch.cuda.stream(self._lanes[0]):
            batch = self._home(at).to(self.device, non_blocking=True)
            arrived = torch.cuda.current_stream(self.device).record_event()
        batch.record_stream(torch.cuda.current_stream(self.device))
        return batch, arrived

    def _home(self, at: slice) -> Hidden:
        near = self._near.get(at.start)
        return self._far[at.start] if near is None else near

    @torch.no_grad()
    def put_(self, at: slice, batch: Hidden) -> None:
        """Takes a batch's place; it is there when the next pass begins."""
        if at.start in self._near:
            batch = batch.detach()
            self._near[at.start] = batch if self._on_gpu else batch.clone()  # on a CPU what is lent is no copy
            return
        if not self._on_gpu:
            self._far[at.start].copy_(batch)
            return
        going = self._lanes[1]
        going.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(going):
            self._far[at.start].copy_(batch, non_blocking=True)
        batch.record_stream(going)

    def copy_(self, other: "HiddenStates") -> None:
        """Becomes the same windows as `other`, of the same batches."""
        for at, batch in other.batches():
            self.put_(at, batch)

    def all(self) -> Hidden:
        """Every window, where all stay on the device or all wait on the host."""
        assert not (self._near and self._far), "windows lie in two places"
        for lane in self._lanes:
            lane.synchronize()
        return torch.cat([self._home(at) for at in self.slices()]) if self._near else self._host


def _spread(places: list[slice], count: int) -> list[slice]:
    """`count` of some places, evenly apart, the first among them."""
    return [
        place for n, place in enumerate(places) if -(-(n + 1) * count // len(places)) > -(-n * count // len(places))
    ]


def unlinked_file(shape: Shape, dtype: torch.dtype, folder: Path) -> Tensor:
    """Room for windows in a file below `folder` that has no name any more."""
    size = torch.Size(shape).numel()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".activations-") as file:
        file.truncate(size * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)
