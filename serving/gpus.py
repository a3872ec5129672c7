"""The GPUs of this machine, as the driver tells, and sizes of memory as people write them."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from serving.errors import ServingError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B)", re.IGNORECASE)
# LMDeploy 0.18's --max-batch-size where nobody says one, by a word in the card's name (its utils.get_max_batch_size).
BATCHES = {"a100": 384, "a800": 384, "h100": 1024, "h800": 1024, "l20y": 1024, "h200": 1024}
BATCH_OF_OTHERS = 128
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used,uuid", "--format=csv,noheader,nounits")
SHOWN = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """A card, with what others use of it already."""

    name: str
    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What a server may take."""
        return self.total_bytes - self.used_bytes


def default_batch(card: str) -> int:
    """Sequences at once that LMDeploy takes on a card of this name, unless it is told."""
    return next((batch for word, batch in BATCHES.items() if word in card.lower()), BATCH_OF_OTHERS)


def parse_size(text: str) -> int:
    """Bytes of `24GiB` or `80GB`; a number without a unit is refused, because it could be either."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ServingError(f"{text!r}: is no size; write 24GiB or 80GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def show_size(size_bytes: float) -> str:
    """A size as people read it."""
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def gpus() -> list[Gpu]:
    """The GPUs that CUDA shows to this process, in its order; none where there is no driver."""
    if shutil.which(QUERY[0]) is None:
        return []
    asked = subprocess.run(QUERY, capture_output=True, text=True, check=False)
    rows = [line.split(", ") for line in asked.stdout.strip().splitlines()]
    if asked.returncode != 0 or any(len(row) != 4 for row in rows):
        words = (asked.stdout + asked.stderr).strip().splitlines() or ["no reason given"]
        raise ServingError(f"nvidia-smi: {words[-1]}; mend the driver")
    return [_card(name, total, used) for name, total, used, _ in _shown(rows, os.environ.get(SHOWN))]


def _shown(rows: list[list[str]], named: str | None) -> list[list[str]]:
    """Those that the variable names, by nvidia-smi's numbers or the beginnings of UUIDs; all where it is not set.

    As for CUDA, the first name that means no card hides what stands behind it. On a machine with unlike cards CUDA
    counts as nvidia-smi does where CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    if named is None:
        return rows
    chosen: list[list[str]] = []
    for name in named.split(","):
        row = _row(rows, name.strip())
        if row is None or row in chosen:
            break
        chosen.append(row)
    return chosen


def _row(rows: list[list[str]], name: str) -> list[str] | None:
    if name.startswith("MIG-"):
        raise ServingError(f"{SHOWN}: {name} is a part of a card, whose memory nvidia-smi does not tell; name a card")
    if name.isdecimal():
        return rows[int(name)] if int(name) < len(rows) else None
    found = [row for row in rows if name.startswith("GPU-") and row[3].startswith(name)]
    return found[0] if len(found) == 1 else None


def _card(name: str, total: str, used: str) -> Gpu:
    if not (total.isdecimal() and used.isdecimal()):
        told = f"{name} has {total} MiB of memory and uses {used}"
        raise ServingError(f"nvidia-smi: {told}; mend the driver, or name other cards in {SHOWN}")
    return Gpu(name, int(total) * 2**20, int(used) * 2**20)
