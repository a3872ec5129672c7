"""Seconds and memory of pruning a real shape, from files on disk to files on disk.

    python benchmarks/prune_speed.py --shapes 20b --host-gib 24      # a GPU, and a host of 24 GiB kept by the kernel

Feed-forward channels are chosen and made good by their Gram matrices, as `params.yaml` does it without further words;
then layers are left out by block influence, which reads the whole model and writes what stays. Weights are random:
neither time nor memory depends on their values. A row a shape and way in benchmarks/results/prune_speed.json.
"""

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch
from host_memory import HostPeak, host_gib
from quantizer import save, table
from quantizer_quality import device, device_name
from quantizer_speed import gigabytes
from random_model import SHAPES, VOCAB, models

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.prune.budget import decoder_parameters
from compress.prune.prune import Work, decide, place_for_windows, write
from compress.prune.recipe import DepthRecipe, WidthRecipe
from compress.prune.text import Text
from compress.quantize.resources import Resources

KEYS = ("shape", "way", "layers", "device")
WAYS = {  # of so many layers: their feed-forward is halved, or their number, so that both models fit onto a small disk
    "feed-forward": lambda layers: WidthRecipe(method="width", intermediate_size=0.5),
    "depth": lambda layers: DepthRecipe(method="depth", remove_layers=max(1, layers // 2)),
}


def run(args, shape, way):
    """One measurement; what it wrote is taken away behind it."""
    source, out = Checkpoint(args.disk / f"random-{shape}"), args.disk / f"random-{shape}-pruned"
    recipe = WAYS[way](source.config.num_layers)
    tokens = torch.randint(0, VOCAB, (args.windows, args.length), generator=torch.Generator().manual_seed(1))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    host, began = HostPeak(), time.perf_counter()
    resources = Resources(device())
    room = place_for_windows(recipe, source.config, Text(tokens), resources, args.disk)
    work = Work(source, Text(tokens), replace(resources, disk=room), way)
    decision = decide(work, recipe, args.disk)
    write(work, recipe, decision, ModelWriter(out, decision.config, "llama"))
    elapsed_s = time.perf_counter() - began
    row = {
        "shape": shape, "way": way, "layers": source.config.num_layers, "of_layers": SHAPES[shape][-1],
        "share": decoder_parameters(decision.config) / decoder_parameters(source.config),
        "windows": args.windows, "length": args.length, "elapsed_s": round(elapsed_s, 1),
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        **host.close(), "host_gib": host_gib(), "windows_wait": "on disk" if room else "in memory",
        "read_gb": gigabytes(source.folder), "written_gb": gigabytes(out), "device": device_name(),
    }  # fmt: skip
    shutil.rmtree(out)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["20b"], choices=SHAPES, help="of random_model.py")
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--host-gib", type=float, help="under this limit on host memory, kept by the kernel")
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="where the models lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prune_speed.json")
    parser.add_argument("--keep", action="store_true", help="leave the models there; the next program takes them")
    args = parser.parse_args()
    with models(args):
        measure(args)


def measure(args):
    """A row a shape and way."""
    rows = []
    for shape in args.shapes:
        for way in args.ways:
            rows.append(run(args, shape, way))
            save(args.out, rows, KEYS)
    table(rows)


if __name__ == "__main__":
    main()
