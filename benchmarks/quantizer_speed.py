"""Seconds and gigabytes from files on disk to files on disk, beside the least that the hardware allows."""

import json
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from host_memory import HostPeak, host_gib
from quality_windows import read_windows
from random_model import SHAPES, VOCAB, models, operations

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.convert import write_in_layout
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.quantize.learned import LOOKS
from compress.quantize.precision import multiplies_bfloat16
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.resources import Resources, place_for_windows
from compress.quantize.walk import quantize_model
from compress.quantize.workers import Workers

RECIPES = {"awq-light": AwqRecipe(), "awq-best": AwqRecipe(rounding=Learned(method="learned"))}
WINDOWS, LENGTH = 128, 2048


def speed(args):
    """A row after each shape and recipe; with torchrun the first process reports."""
    workers = Workers.started()
    with models(args, workers):
        rate = product_rate()
        for shape in args.shapes:
            for name in args.recipes or ["awq-light"]:
                row = run(shape, name, args, workers, rate)
                if workers.rank == 0:
                    yield [row]


def product_rate():
    """Operations a second of a large float16 product on random data: the ceiling of this GPU."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        a @ a
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - start)


def run(shape, name, args, workers, rate):
    """One measurement; what it wrote is taken away behind it."""
    folder, out = args.disk / f"random-{shape}", args.disk / f"random-{shape}-w4"
    if workers.rank == 0:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
    workers.wait()
    tokens = torch.randint(0, VOCAB, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(1))
    seconds = profiled() if args.profile else {}
    device = f"cuda:{workers.rank}"
    torch.cuda.reset_peak_memory_stats(device)
    host = HostPeak()
    start = time.perf_counter()
    checkpoint = Checkpoint(folder)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), "internlm2")
    resources, hidden_size = Resources(device, workers=workers), checkpoint.config.fields["hidden_size"]
    room = place_for_windows(tuple(tokens.shape), hidden_size, RECIPES[name], resources, args.disk)
    quantize_model(checkpoint, tokens, RECIPES[name], writer, replace(resources, disk=room))
    torch.cuda.synchronize()
    workers.wait()
    elapsed = time.perf_counter() - start
    layers = checkpoint.config.num_layers
    floor = floor_s(shape, name, layers, rate) / workers.count
    row = {
        "shape": shape, "recipe": name, "layers": layers, "of_layers": SHAPES[shape][-1], "gpus": workers.count,
        "windows": WINDOWS, "length": LENGTH, "elapsed_s": round(elapsed, 2), "floor_s": round(floor, 2),
        "times_floor": round(elapsed / floor, 2),
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2),
        **host.close(), "host_gib": host_gib(),
        "windows_wait": "on disk" if room else "in memory",
        "read_gb": gigabytes(folder), "written_gb": gigabytes(out), "product_tflops": round(rate / 1e12),
        "device": torch.cuda.get_device_name(), "alone": not args.shared,
    }  # fmt: skip
    if seconds:
        print(json.dumps({k: round(v, 2) for k, v in sorted(seconds.items(), key=lambda x: -x[1])}))
    if workers.rank == 0:
        shutil.rmtree(out)
    workers.wait()
    return row


def floor_s(shape, name, layers, rate):
    """Seconds of one GPU that a recipe cannot do without at this rate."""
    recipe, trained, looked = RECIPES[name], 0, 0
    if isinstance(recipe.rounding, Learned):
        trained = recipe.rounding.steps * recipe.rounding.batch * LENGTH
        looked = (1 + LOOKS) * recipe.rounding.held_out * LENGTH
    return operations(shape, WINDOWS * LENGTH, LENGTH, True, layers, trained, looked) / rate


def gigabytes(folder: Path):
    return round(sum(file.stat().st_size for file in folder.iterdir()) / 1e9, 2)


def profiled():
    """Seconds by part of the work, the device waited for around each: more in sum than without."""
    from compress.checkpoint import runner
    from compress.quantize import layer, refine, stream, walk

    seconds = defaultdict(float)

    def timed(owner, name):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            torch.cuda.synchronize()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            torch.cuda.synchronize()
            seconds[f"{name} {args[3]}" if name == "_measure" else name] += time.perf_counter() - start
            return result

        setattr(owner, name, wrapper)

    parts = ("search_scale", "factorize", "aimed", "search_clip", "gptq", "refine", "output_error")
    for name in parts:
        timed(layer, name)
    timed(layer.LayerQuantizer, "_measure")
    timed(layer.LayerQuantizer, "_plain_error")
    timed(stream.Stream, "move_")
    timed(refine, "fit_scales")
    timed(refine, "descend")
    timed(walk._Walk, "_tensors")
    timed(runner.LayerRunner, "load")
    return seconds


def cpu(args):
    """Quantizing SmolLM2 beside the forward passes of the two models that it goes with, in one run on this machine.

    A row after each layout: the model is read and written in it.
    """
    tokens = read_windows(args.windows)["calibration"][:32, :512].contiguous()
    for layout in ("llama", "internlm2"):
        with tempfile.TemporaryDirectory(dir=args.disk) as work:
            model, out = Path(work, "model"), Path(work, "w4")
            model.mkdir(), out.mkdir()
            write_in_layout(args.model, layout, model)
            checkpoint = Checkpoint(model)
            forward = forward_s(checkpoint, tokens)
            start = time.perf_counter()
            writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), layout)
            quantize_model(checkpoint, tokens, AwqRecipe(group_size=64), writer)
            elapsed = time.perf_counter() - start
        yield [{
            "recipe": "awq-light", "model": "SmolLM2-135M", "layout": layout, "windows": 32, "length": 512,
            "threads": torch.get_num_threads(), "bfloat16": multiplies_bfloat16("cpu"), "alone": not args.shared,
            "forward_s": round(forward, 1), "elapsed_s": round(elapsed, 1),
            "times_two_forwards": round(elapsed / (2 * forward), 2),
        }]  # fmt: skip


def forward_s(checkpoint, tokens):
    """Seconds of taking the windows through the float model, a layer at a time as quantizing does."""
    runner = LayerRunner(checkpoint, "cpu", 8)
    hidden = runner.embed(tokens)
    start = time.perf_counter()
    for n in range(checkpoint.config.num_layers):
        hidden = runner.run(runner.load(n), hidden)
        runner.release(n)
    return time.perf_counter() - start
