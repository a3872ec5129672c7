"""Load on an OpenAI-protocol server: tokens a second, and how long people wait, at a rate that does not wait for them.

    python benchmarks/serving.py closed URL --batch 1,8,64         # so many at once, the next when one ends
    python benchmarks/serving.py open URL --rate 2,8,32            # Poisson arrivals, whether or not it keeps up
    python benchmarks/serving.py compare base=models/base awq-w4=models/awq-w4 student-awq-w4=models/student-awq-w4
    python benchmarks/serving.py compare --random 1.8b --tokenizer models/base

`compare` needs a GPU and LMDeploy 0.18: it serves each model in turn, drives it at 1, 8 and 64 at once, and then at
half, 80 % and all of the answers a second that it gave there, at random times. `--random` makes three models of a real
shape (16 bits; 4 bits; 18 of 24 layers in 4 bits): speed does not depend on the weights' values, and the demo's are too
small to say anything of a GPU. Writes benchmarks/results/serving.json. Prompts are of the length asked for, answers too
(by LMDeploy's `ignore_eos`; --plain for servers that lack it).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # this file's own name is that of the package
sys.path.append(str(Path(__file__).parent))

from artifact import digest
from load import Answer, Job, summary
from made_apart import make

RESULT = ROOT / "benchmarks" / "results" / "serving.json"
CLIENT = Path(__file__).with_name("load.py")
SHARES = (0.5, 0.8, 1.0)  # of what a closed loop got out of the server
OPEN_S = 10.0  # an open loop takes as long at least: its queue has to grow where it would
BEGIN_S = 0.5  # until all clients are ready
RANDOM = {"{}": ("fp16", "{}"), "{}, AWQ": ("awq-128", "{}"), "{} of 18 layers, AWQ": ("awq-128", "{}-18-layers")}


def drive(
    options: argparse.Namespace, url: str, model: str, load: float, *, is_open: bool, seconds: float | None = None
) -> dict:
    """One run against a server, for so many seconds or as many requests as were asked for."""
    seconds = seconds or options.seconds
    requests = options.requests if options.requests or seconds else int(max(8, 4 * load))
    clients = options.clients if is_open else min(options.clients, int(load))
    begins_at, jobs = time.time() + BEGIN_S, []
    body = {"model": model, "max_tokens": options.output, "stream": True, "temperature": 0.0}
    body |= {} if options.plain else {"ignore_eos": True, "stream_options": {"include_usage": True}}
    for n in range(clients):
        share = load / clients if is_open else load // clients + (n < load % clients)
        asked = None if requests is None else requests // clients + (n < requests % clients)
        if asked != 0:
            seed = options.seed * 1009 + n
            jobs.append(Job(url, body, options.input, seed, is_open, share, seconds if asked is None else None, asked,
                            options.patience, begins_at))  # fmt: skip
    answers = answered(jobs)
    elapsed_s = seconds if requests is None else max(answer.asked_s + answer.end_s for answer in answers)
    row = {"loop": "open" if is_open else "closed", "rate" if is_open else "batch": load, "clients": len(jobs)}
    return row | {"input": options.input, "output": options.output} | summary(answers, elapsed_s)


def answered(jobs: list[Job]) -> list[Answer]:
    """The answers that all clients got, each in a process of its own."""
    processes = []
    for job in jobs:
        process = subprocess.Popen([sys.executable, str(CLIENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(job)).encode())
        process.stdin.close()
        processes.append(process)
    found = []
    for process in processes:
        assert process.stdout is not None
        found += [Answer(**answer) for answer in json.loads(process.stdout.read())]
        process.stdout.close()
        process.wait()
    return found


def told(row: dict) -> str:
    """A run in one line."""
    load = f"rate {row['rate']:.3g}/s" if "rate" in row else f"batch {row['batch']:g}"
    first, gap = row["first_token_s"].get("p50", math.nan), row["between_tokens_s"].get("p50", math.nan)
    late = row["first_token_s"].get("p99", math.nan)
    speed = f"{row['output_tokens_a_second']:,.0f} tokens/s, first after {1e3 * first:.0f} ms (p99 {1e3 * late:.0f})"
    return f"{load}: {speed}, then {1e3 * gap:.1f} ms, {row['errors']} errors of {row['requests']}"


def compare(options: argparse.Namespace) -> list[dict]:
    """Every model served by LMDeploy in turn: closed loops, then open ones at shares of what those gave."""
    from serving.gpus import gpus

    rows = []
    with models(options) as found:
        for name, folder, shape in found:
            about = {
                "model": name,
                "shape": shape,
                "artifact": digest(folder),
                "device": gpus()[0].name,
                "kv_bits": options.kv or 16,
            }
            with served(name, folder, options.kv) as url:
                drive(options, url, name, max(options.batch), is_open=False, seconds=1.0)  # the first are slower
                for row in loaded(options, url, name):
                    rows.append(about | row)
                    print(f"{name}, {told(row)}", flush=True)
                    (options.out or RESULT).write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    return rows


def loaded(options: argparse.Namespace, url: str, name: str) -> Iterator[dict]:
    """Every run of one server, as it ends."""
    capacity = 0.0  # by tokens: answers that a short run did not see the end of count for what they had
    for batch in options.batch:
        row = drive(options, url, name, batch, is_open=False)
        capacity = max(capacity, row["output_tokens_a_second"] / options.output)
        yield row
    for share in SHARES if capacity else ():
        seconds = max(OPEN_S, options.seconds or 0)
        yield {"share": share} | drive(options, url, name, share * capacity, is_open=True, seconds=seconds)


@contextmanager
def models(options: argparse.Namespace) -> Iterator[list[tuple[str, Path, str | None]]]:
    """Name, folder and, of random weights, shape of each model; those are made in processes that free the GPU again."""
    own = [
        (name, Path(place or name).resolve(), None) for name, _, place in (t.partition("=") for t in options.targets)
    ]
    with tempfile.TemporaryDirectory() as home:
        made = []
        for shape in options.random:
            for name, (weights, sized) in RANDOM.items():
                folder = Path(home) / f"{shape}-{len(made)}"
                make(folder, weights, sized.format(shape), options.tokenizer)
                made.append((name.format(shape.upper()), folder, shape))
        yield own + made


@contextmanager
def served(name: str, folder: Path, kv: int) -> Iterator[str]:
    """The address of LMDeploy's server on this folder, while it runs."""
    from serving.gpus import gpus
    from serving.profile import EngineProfile, batched, command, fitted
    from serving.server import LOOPBACK, Server, lmdeploy_command, reachable
    from serving.shape import read_shape

    profile = batched(fitted(EngineProfile(quant_policy=kv), read_shape(folder), name), gpus()[0].name)
    port = free_port()
    address = reachable(LOOPBACK, port)
    server = Server(lmdeploy_command(command(profile, folder, host=LOOPBACK, port=port, model_name=name)), address)
    try:
        server.wait_until_ready(600)
        yield address
    finally:
        server.end()


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=["closed", "open", "compare"])
    parser.add_argument("targets", nargs="*", help="a server's address, or NAME=FOLDER for compare")
    parser.add_argument("--random", nargs="+", default=[], choices=["1.8b"], help="shapes of random weights to compare")
    parser.add_argument("--tokenizer", type=Path, help="the folder that lends them one")
    parser.add_argument("--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--rate", type=lambda text: [float(part) for part in text.split(",")], default=[1.0, 4.0, 16.0])
    parser.add_argument("--seconds", type=float, help="of each run; of compare 4, its open loops 10 at least")
    parser.add_argument("--requests", type=int, help="of each run in place of seconds; 4 a batch or second, at least 8")
    parser.add_argument("--clients", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="processes")
    parser.add_argument("--input", type=int, default=128, help="words of a prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until an answer is an error")
    parser.add_argument("--kv", type=int, default=0, choices=[0, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--plain", action="store_true", help="a server without ignore_eos: answers end where they end")
    parser.add_argument("--out", type=Path, help="write the rows here")
    options = parser.parse_args()
    if (not options.targets and not options.random) or bool(options.random) > bool(options.tokenizer):
        parser.error("name a target, or --random with --tokenizer")
    if options.loop == "compare":
        options.seconds = options.seconds or (None if options.requests else 4.0)
        rows = compare(options)
    else:
        loads, is_open = (options.rate, True) if options.loop == "open" else (options.batch, False)
        rows = [drive(options, options.targets[0], options.model, load, is_open=is_open) for load in loads]
        print("\n".join(told(row) for row in rows))
        if options.out:
            options.out.write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    if any(row["errors"] for row in rows):
        raise SystemExit("some requests failed; see first_error")


if __name__ == "__main__":
    main()
