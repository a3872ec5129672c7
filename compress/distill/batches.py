"""Which windows each update sees, divided into passes and processes, ready for the device.

Everything is counted on the host: no step waits for the device to know how many of its tokens count.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from compress.errors import CompressError


@dataclass(frozen=True)
class Pass:
    """A process's part of an update that lies on the device at once."""

    windows: list[int]
    tokens: Integer[Tensor, "windows length"]
    positions: Tensor | None  # of the flattened windows those that count; None where all do
    w: Tensor  # of each that counts its share of the update's mean, and of the mean over those with a label

    def everywhere(self) -> Float[Tensor, "windows length"]:
        """Each position's share of the mean, none where it does not count."""
        if self.positions is None:
            return self.w[0].view(self.tokens.shape)
        flat = torch.zeros(self.tokens.numel(), device=self.w.device)
        return flat.index_copy(0, self.positions, self.w[0]).view(self.tokens.shape)


@dataclass(frozen=True)
class Corpus:
    """Windows on the host, and which of their positions count."""

    tokens: Integer[Tensor, "windows length"]
    counted: Bool[Tensor, "windows length"] | None = None

    def digest(self, windows: list[int]) -> str:
        """sha256 of some windows' token ids: by it a batch is found again."""
        return hashlib.sha256(self.tokens[windows].int().numpy().tobytes()).hexdigest()

    def part(self, windows: list[int], total: tuple[int, int], scale: int, device: torch.device) -> Pass:
        """A pass over `windows`, of an update whose positions and labels are `total` in number."""
        tokens, counts = self.tokens[windows], None if self.counted is None else self.counted[windows]
        every = torch.ones(tokens.shape) if counts is None else counts.float()
        labelled = every.clone()
        labelled[:, -1] = 0  # the last has no next token in its window
        w = torch.stack([every / max(total[0], 1), labelled / max(total[1], 1)]).flatten(1) * scale
        positions = None if counts is None else counts.flatten().nonzero().squeeze(1)
        if positions is not None:
            w = w[:, positions]
        moved = [None if t is None else _to(t, device) for t in (tokens, positions, w)]
        return Pass(windows, moved[0], moved[1], moved[2])  # type: ignore[arg-type]

    def totals(self, windows: list[int]) -> tuple[int, int]:
        """How many positions count, and how many of those have a label."""
        if self.counted is None:
            count, length = len(windows), self.tokens.shape[1]
            return count * length, count * (length - 1)
        counts = self.counted[windows]
        return int(counts.sum()), int(counts[:, :-1].sum())


def order(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """The windows of each update; all are seen once before any is seen twice."""
    generator = torch.Generator().manual_seed(seed)
    ahead: list[int] = []
    while True:
        while len(ahead) < batch:
            ahead += torch.randperm(count, generator=generator).tolist()
        taken, ahead = ahead[:batch], ahead[batch:]
        yield taken


def divide(windows: list[int], passes: int, process: int, processes: int, what: str) -> list[list[int]]:
    """One process's windows of an update, a list a pass."""
    if len(windows) % (passes * processes):
        raise CompressError(
            f"{what}: {len(windows)} windows do not divide into {passes} passes of {processes} processes; "
            f"use a multiple of {passes * processes}"
        )
    mine = windows[process::processes]
    size = len(mine) // passes
    return [mine[start : start + size] for start in range(0, len(mine), size)]


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
