"""Other programs' 4-bit weights, made on our windows, each in a process of its own: the peers' rows of `quantizer.py`.

    python benchmarks/peers.py --model SMOLLM2 --windows windows.safetensors --out OUT lmdeploy autoround-200 …
    … --num-windows 4 --length 64 lmdeploy autoround-12    # a try-out on a CPU

OUT/NAME/ then holds `model.safetensors` (float16, stock Llama names; what was 4 bits is (q − z)·s) and `config.json`,
so that one evaluator scores every recipe the same way, and OUT/NAME.json the row: seconds of quantizing alone, peak GPU
memory, device, versions, settings, or the reason why there are no weights. OUT/peers.json holds all rows, those of
earlier calls too. A program that fails, or outlasts `--timeout-s`, has a row as well. Runs without pydantic, datasets
or this package; `peer_wheels.py` fetches what the programs need.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peer_programs import BITS, GROUP, NAMES, Made, Weights, program
from quality_windows import digest, read_windows
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def checked(weights: Weights, model: Path) -> Weights:
    """In float16, by the names and shapes of the model they came from; refuses anything missing or not finite."""
    with safe_open(model / "model.safetensors", "pt") as base:
        shapes = {name: tuple(base.get_slice(name).get_shape()) for name in base.keys()}  # noqa: SIM118 - no mapping
    if wrong := sorted(name for name in shapes if name not in weights or tuple(weights[name].shape) != shapes[name]):
        raise ValueError(f"{wrong[0]}: not made in the base's shape, and so {len(wrong)} tensors in all")
    halves = {name: weights[name].detach().to("cpu", torch.float16).contiguous() for name in shapes}
    if bad := [name for name, tensor in halves.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{bad[0]}: not finite in float16, and so {len(bad)} tensors in all")
    return halves


def write(weights: Weights, model: Path, folder: Path) -> None:
    """The folder, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text("utf8"))
    (partial / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}, indent=2), "utf8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def row(name: str, windows: Tensor, made: Made, *, alone: bool) -> dict[str, Any]:
    """What there is to say about a run that came through."""
    return {
        "recipe": name,
        "elapsed_s": round(made.elapsed_s, 2),
        "alone": alone,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "device": device_name(),
        "bits": BITS,
        "group": GROUP,
        "calibration": {"shape": list(windows.shape), "sha256": digest(windows.numpy())},
        "settings": made.settings,
        "versions": made.versions,
        "error": None,
    }


def device_name() -> str:
    """The GPU's own name, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def save(values: dict[str, Any], out: Path) -> None:
    """The row as OUT/NAME.json."""
    (out / f"{values['recipe']}.json").write_text(json.dumps(values, indent=2) + "\n", "utf8")


def work(name: str, args: argparse.Namespace) -> None:
    """In this process: runs one program, writes its weights and then its row."""
    windows = read_windows(args.windows)["calibration"][: args.num_windows, : args.length].contiguous()
    made = program(name)(args.model, windows)
    write(checked(made.weights, args.model), args.model, args.out / name)
    save(row(name, windows, made, alone=not args.shared), args.out)


def ran(command: list[str], log: Path, timeout_s: float) -> str:
    """Runs a command with its output in a file; the reason why it failed, or nothing."""
    environment = {**os.environ, **OFFLINE}
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, timeout=timeout_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not done after {timeout_s:.0f} s"
    lines = [line for line in log.read_text("utf8", "replace").splitlines() if line.strip()]
    return f"exit status {status}: {lines[-1] if lines else 'no output'}" if status else ""


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one program in a process of its own and returns its row; what it printed is OUT/NAME.log."""
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(args.out / name, ignore_errors=True)
    options = ["model", "windows", "out", "num_windows", "length"]
    given = [f"--{option.replace('_', '-')}={value}" for option in options if (value := getattr(args, option))]
    command = [sys.executable, __file__, *given, "--in-this-process", name]
    command += ["--shared"] * args.shared
    if reason := ran(command, args.out / f"{name}.log", args.timeout_s):
        save({"recipe": name, "elapsed_s": None, "device": device_name(), "error": reason}, args.out)
    gather(args.out)
    return json.loads((args.out / f"{name}.json").read_text("utf8"))


def gather(out: Path) -> None:
    """All rows there are, of this call and of those before it, as OUT/peers.json."""
    rows = [json.loads(file.read_text("utf8")) for file in sorted(out.glob("*.json")) if file.name != "peers.json"]
    (out / "peers.json").write_text(json.dumps(rows, indent=2) + "\n", "utf8")


def main() -> None:
    """Runs the programs one after the other; a name that is none stops it before the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--model", type=Path, required=True, help="a Llama folder, one safetensors file")
    parser.add_argument("--windows", type=Path, required=True, help="of quality_windows.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-windows", type=int, help="only so many, for a try-out")
    parser.add_argument("--length", type=int, help="only so many tokens of each, for a try-out")
    parser.add_argument("--timeout-s", type=float, default=540, help="of one program, loading and saving included")
    parser.add_argument("--shared", action="store_true", help="others use the GPU meanwhile: seconds are no measure")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_this_process:
        return work(args.names[0], args)
    for name in args.names:
        program(name)
    for name in args.names:
        start = time.monotonic()
        said = run(name, args)
        outcome = said["error"] or f"{said['elapsed_s']:.1f} s of quantizing"
        print(f"{name:24} {time.monotonic() - start:6.1f} s in all; {outcome}", flush=True)
    return None


if __name__ == "__main__":
    main()
