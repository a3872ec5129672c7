"""What a server takes of a real GPU, by nvidia-smi, beside what the planner said before it started.

    python benchmarks/memory.py FOLDER …            # needs a GPU and LMDeploy 0.18; about a minute a row

Each folder is served with every cache ratio and KV width that it can have; after one answer the card is read. Writes
benchmarks/results/memory.json; the planner is wrong where the difference is beyond 5 %.
"""

import argparse
import socket
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/serving.py would stand before the package
sys.path.append(str(Path(__file__).parent))

from quantizer import save

from serving.client import Client
from serving.engine import Sampling
from serving.gpus import gpus
from serving.memory import plan
from serving.profile import EngineProfile, batched, command, fitted, kv_bits
from serving.server import LOOPBACK, Server, lmdeploy_command
from serving.shape import read_shape

RESULT = Path(__file__).parent / "results" / "memory.json"
START_S = 300.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def measure(folder: Path, ratio: float, kv: int) -> dict:
    """One row: planned and read."""
    shape, before = read_shape(folder), gpus()[0]
    asked = EngineProfile(cache_max_entry_count=ratio, quant_policy=kv)
    profile = batched(fitted(asked, shape, str(folder)), before.name)
    planned = plan(shape, profile, before.free_bytes)
    port = free_port()
    told = command(profile, folder, host=LOOPBACK, port=port, model_name=folder.name)
    server = Server([*lmdeploy_command(told), "--log-level", "INFO"], f"http://{LOOPBACK}:{port}")
    try:
        server.wait_until_ready(START_S)
        said = "".join(Client(f"http://{LOOPBACK}:{port}").complete("Once upon a time", Sampling(max_tokens=64)))
        after = gpus()[0]
    finally:
        server.end()
    read = after.used_bytes - before.used_bytes
    return {
        "model": folder.name,
        "device": before.name,
        "cache": ratio,
        "kv_bits": kv or 16,
        "read_bytes": read,
        "difference": planned.total_bytes / read - 1,
        "answer": said[:60],
        **planned.as_dict(),
    }


def main() -> None:
    """Every row, written and printed; rows of the same names are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--cache", nargs="+", type=float, default=[0.2, 0.4, 0.8], help="cache ratios")
    parser.add_argument("--kv", nargs="+", type=int, choices=(16, 8, 4), help="bits; all that a folder can have")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not gpus():
        raise SystemExit(__doc__)
    for folder in args.folders:
        able = kv_bits(read_shape(folder))
        asked = able if args.kv is None else [bits for bits in able if (bits or 16) in args.kv]
        for ratio, kv in product(args.cache, asked):
            row = measure(folder.resolve(), ratio, kv)
            took = f"planned {row['total_bytes'] / 2**20:,.0f} MiB, read {row['read_bytes'] / 2**20:,.0f} MiB"
            print(f"{row['model']}, cache {ratio}, KV {kv or 16}: {took}, {100 * row['difference']:+.1f} %", flush=True)
            save(args.out, [row], ("model", "device", "cache", "kv_bits"))


if __name__ == "__main__":
    main()
