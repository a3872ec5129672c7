"""What a server takes of a real GPU, by nvidia-smi, beside what the planner said before it started.

    python benchmarks/memory.py models/base models/awq-w4                        # the demo's folders
    python benchmarks/memory.py --random 1.8b --tokenizer models/base            # and random weights in real shapes
    python benchmarks/memory.py --random 1.8b 7b --tokenizer models/base --formats fp16 awq-128 --cache 0.2 0.8

Needs a GPU and LMDeploy 0.18. Each model is loaded with every cache ratio and KV width that it can have, each time in a
process of its own; after one answer the card is read. A row is written to benchmarks/results/memory.json as soon as it
is there, one with a `reason` where the engine failed. The planner is wrong where the difference is beyond 5 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/serving.py would stand before the package
sys.path.append(str(Path(__file__).parent))

from artifact import digest
from made_apart import make
from quantizer import save

from serving.gpus import gpus
from serving.memory import plan
from serving.profile import EngineProfile, batched, fitted, kv_bits
from serving.server import interpreter
from serving.shape import Shape, read_shape

MIB = 2**20
RESULT = Path(__file__).parent / "results" / "memory.json"
READER = Path(__file__).with_name("memory_reading.py")
KEYS = ("model", "device", "cache", "kv_bits")
PATIENCE_S = 120.0  # for a reading; the longest was of 7B's shape


@dataclass(frozen=True)
class Asked:
    """One reading to be taken."""

    model: str
    folder: Path
    kind: str | None  # "1.8b"; None where the folder is a model of somebody's
    shape: Shape
    cache: float
    kv: int

    def profile(self, card: str) -> EngineProfile:
        """What the engine is told on this card."""
        told = EngineProfile(cache_max_entry_count=self.cache, quant_policy=self.kv)
        return batched(fitted(told, self.shape, self.model), card)


class Reader:
    """A process that has begun to import what it needs; `ask` lets it read."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        self._process = subprocess.Popen(
            [interpreter(), str(READER), json.dumps({"folder": str(asked.folder)})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def ask(self, card: str) -> dict:
        """The reading; `reason` alone where it failed or took too long. The process has ended then."""
        engine = self.asked.profile(card).model_dump(exclude_none=True)
        late = threading.Timer(PATIENCE_S, self._process.kill)
        late.start()
        try:
            out, _ = self._process.communicate(json.dumps(engine) + "\n")
        except BrokenPipeError:  # it died before it was asked
            out, _ = self._process.communicate()
        finally:
            overdue = not late.is_alive()
            late.cancel()
        found = [line.removeprefix("READ ") for line in out.splitlines() if line.startswith("READ ")]
        return json.loads(found[0]) if found else {"reason": self._why(overdue)}

    def end(self) -> None:
        """The process has ended, asked or not."""
        self._process.kill()
        self._process.wait()

    def _why(self, overdue: bool) -> str:
        if overdue:
            return f"no reading in {PATIENCE_S:.0f} s"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"ended with status {self._process.returncode}: {lines[-1][:200] if lines else 'no word'}"


def row(asked: Asked, card: str, read: dict) -> dict:
    """Planned and read, or why not."""
    told = {"model": asked.model, "artifact": digest(asked.folder), "device": card, "cache": asked.cache}
    told |= {"kv_bits": asked.kv or 16, "shape": asked.kind}
    if "reason" in read:
        return told | read
    planned = plan(asked.shape, asked.profile(card), (read["total_mib"] - read["before_mib"]) * MIB)
    if (taken := (read["after_mib"] - read["before_mib"]) * MIB) <= 0:
        return told | {"reason": "the driver shows no more in use than before"}
    told |= {"read_bytes": taken, "difference": planned.total_bytes / taken - 1, "answer": read["answer"]}
    return told | planned.as_dict() | {"decoder": asdict(asked.shape), "max_batch": asked.profile(card).max_batch_size}


def measure(wanted: list[Asked], card: str, out: Path) -> None:
    """Every row, printed and saved as it comes; the next process imports while this one reads."""
    following = Reader(wanted[0])
    try:
        for n, asked in enumerate(wanted, 1):
            reader = following
            following = Reader(wanted[n]) if n < len(wanted) else reader
            found = row(asked, card, reader.ask(card))
            print(line(found), flush=True)
            save(out, [found], KEYS)
    finally:
        with suppress(ProcessLookupError):
            following.end()


def line(found: dict) -> str:
    """A row in one line."""
    name = f"{found['model']}, cache {found['cache']}, KV {found['kv_bits']}"
    if "reason" in found:
        return f"{name}: {found['reason']}"
    took = f"planned {found['total_bytes'] / MIB:,.0f} MiB, read {found['read_bytes'] / MIB:,.0f} MiB"
    return f"{name}: {took}, {100 * found['difference']:+.1f} %"


@contextmanager
def random_models(
    kinds: list[str], formats: list[str], tokenizer: Path | None
) -> Iterator[list[tuple[str, Path, str]]]:
    """Name, folder and shape of each model of random weights."""
    with tempfile.TemporaryDirectory() as home:
        made = [(f"random {kind}, {name}", Path(home) / f"{kind}-{name}", kind) for kind in kinds for name in formats]
        for (_, folder, kind), name in zip(made, formats * len(kinds), strict=True):
            make(folder, name, kind, tokenizer)
        yield made


def main() -> None:
    """Rows of the same names are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--random", nargs="+", default=[], choices=["1.8b", "7b"], help="shapes of random weights")
    parser.add_argument("--formats", nargs="+", default=["fp16", "awq-128"], help="of them, as format_speed.py has it")
    parser.add_argument("--tokenizer", type=Path, help="the folder that lends them one")
    parser.add_argument("--cache", nargs="+", type=float, help="ratios; 0.2 0.4 0.8, of random weights 0.2 0.8")
    parser.add_argument("--kv", nargs="+", type=int, choices=(16, 8, 4), help="bits; all that a model can have")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not gpus() or not (args.folders or args.random) or bool(args.random) > bool(args.tokenizer):
        raise SystemExit(__doc__)
    with random_models(args.random, args.formats, args.tokenizer) as made:
        own = [(folder.name, folder.resolve(), None) for folder in args.folders]
        wanted = []
        for name, folder, kind in [*own, *made]:
            shape = read_shape(folder)
            bits = [kv for kv in kv_bits(shape) if args.kv is None or (kv or 16) in args.kv]
            ratios = args.cache or ((0.2, 0.8) if kind else (0.2, 0.4, 0.8))
            wanted += [Asked(name, folder, kind, shape, ratio, kv) for ratio, kv in product(ratios, bits)]
        measure(wanted, gpus()[0].name, args.out)


if __name__ == "__main__":
    main()
