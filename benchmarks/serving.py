"""Load on an OpenAI-protocol server: tokens a second, and how long people wait, at a rate that does not wait for them.

    python benchmarks/serving.py closed URL --batch 1,8,64         # so many at once, the next when one ends
    python benchmarks/serving.py open URL --rate 2,8,32            # Poisson arrivals, whether or not it keeps up
    python benchmarks/serving.py compare base=models/base awq-w4=models/awq-w4 student-awq-w4=models/student-awq-w4

`compare` needs a GPU and LMDeploy 0.18: it serves each folder in turn, drives it at batch 1, 8 and 64, and writes
benchmarks/results/serving.json. An open loop is honest about queues: a closed one slows down with its server.
Prompts are of the length asked for, answers too (by LMDeploy's `ignore_eos`; --plain for servers that lack it).
"""

import argparse
import asyncio
import json
import math
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serving.json"
WORDS = (
    "the",
    "a",
    "little",
    "dog",
    "cat",
    "went",
    "to",
    "see",
    "old",
    "house",
    "river",
    "and",
    "found",
    "red",
    "ball",
)
PERCENTILES = (50, 90, 99)


@dataclass
class Answer:
    """When the pieces of one answer came, in seconds after it was asked."""

    pieces_s: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str = ""
    end_s: float = 0.0


def prompt(length: int, seed: int) -> str:
    """About `length` tokens of text; no two alike, so that no server answers from a prefix it remembers."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(length))


async def ask(url: str, body: dict, patience_s: float) -> Answer:
    """One streamed completion; whatever goes wrong is the answer's error."""
    answer, start = Answer(), time.perf_counter()
    try:
        await asyncio.wait_for(_stream(url, body, answer, start), patience_s)
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        answer.error = str(error) or type(error).__name__
    except asyncio.TimeoutError:
        answer.error = f"no end in {patience_s:.0f} s"
    answer.end_s = time.perf_counter() - start
    return answer


async def _stream(url: str, body: dict, answer: Answer, start: float) -> None:
    parts = urlsplit(url)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.0\r\nHost: {parts.hostname}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(head.encode() + content)
        await writer.drain()
        status = (await reader.readline()).decode()
        if " 200 " not in status:
            raise ValueError(f"{status.strip()}: {(await reader.read(2000)).decode(errors='replace')[-200:]}")
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                _take(json.loads(line[6:]), answer, time.perf_counter() - start)
            elif line.startswith(b"data: [DONE]"):
                break
    finally:
        writer.close()
    if not answer.pieces_s:
        raise ValueError("the server ended without a word")


def _take(event: dict, answer: Answer, now_s: float) -> None:
    if "error" in event:
        raise ValueError(str(event["error"]))
    # A token may be part of a character, and has no text then.
    if any(choice.get("text") or not choice.get("finish_reason") for choice in event.get("choices", [])):
        answer.pieces_s.append(now_s)
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]


async def closed_loop(one: Callable[[int], Awaitable[Answer]], batch: int, requests: int) -> tuple[list[Answer], float]:
    """`batch` at once until all are answered; with the seconds it took."""
    waiting, answers, start = iter(range(requests)), [], time.perf_counter()

    async def worker() -> None:
        for number in waiting:
            answers.append(await one(number))

    await asyncio.gather(*(worker() for _ in range(batch)))
    return answers, time.perf_counter() - start


async def open_loop(one: Callable[[int], Awaitable[Answer]], rate: float, requests: int) -> tuple[list[Answer], float]:
    """Arrivals at `rate` a second, exponentially apart, whatever the server does; with the seconds until the last."""
    draw, start, tasks = random.Random(0), time.perf_counter(), []
    for number in range(requests):
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(draw.expovariate(rate))
    return list(await asyncio.gather(*tasks)), time.perf_counter() - start


def summary(answers: Sequence[Answer], elapsed_s: float) -> dict:
    """What people would want to know of a run."""
    whole = [answer for answer in answers if not answer.error]
    gaps = [b - a for answer in whole for a, b in zip(answer.pieces_s, answer.pieces_s[1:], strict=False)]
    tokens = sum(answer.tokens or len(answer.pieces_s) for answer in whole)
    return {
        "requests": len(answers),
        "errors": len(answers) - len(whole),
        "first_error": next((answer.error for answer in answers if answer.error), ""),
        "elapsed_s": elapsed_s,
        "output_tokens": tokens,
        "output_tokens_a_second": tokens / elapsed_s,
        "requests_a_second": len(whole) / elapsed_s,
        "first_token_s": percentiles([answer.pieces_s[0] for answer in whole]),
        "between_tokens_s": percentiles(gaps),
        "whole_answer_s": percentiles([answer.end_s for answer in whole]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The value below which so many of 100 lie (nearest rank); empty for no values."""
    ordered = sorted(values)
    return {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in PERCENTILES} if ordered else {}


def drive(options: argparse.Namespace, url: str, model: str, load: float, *, is_open: bool) -> dict:
    """One run against a server."""

    async def one(number: int) -> Answer:
        text = prompt(options.input, options.seed * 1_000_003 + number)
        body = {"model": model, "prompt": text, "max_tokens": options.output, "stream": True, "temperature": 0.0}
        extra = {} if options.plain else {"ignore_eos": True, "stream_options": {"include_usage": True}}
        return await ask(url, body | extra, options.patience)

    requests = options.requests or int(max(8, 4 * load))
    loop = open_loop(one, load, requests) if is_open else closed_loop(one, int(load), requests)
    answers, elapsed_s = asyncio.run(loop)
    row = {"rate" if is_open else "batch": load, "input": options.input, "output": options.output}
    return row | summary(answers, elapsed_s)


def told(row: dict) -> str:
    """A run in one line."""
    load = f"rate {row['rate']:g}/s" if "rate" in row else f"batch {row['batch']:g}"
    first, gap = row["first_token_s"].get("p50", math.nan), row["between_tokens_s"].get("p50", math.nan)
    speed = f"{row['output_tokens_a_second']:,.0f} tokens/s, first after {1e3 * first:.0f} ms, then {1e3 * gap:.1f} ms"
    return f"{load}: {speed} (medians), {row['errors']} errors of {row['requests']}"


def compare(options: argparse.Namespace) -> list[dict]:
    """Every folder served by LMDeploy in turn, at every batch."""
    sys.path.insert(0, str(ROOT))  # this file's own name is that of the package
    from artifact import digest

    from serving.gpus import gpus
    from serving.profile import EngineProfile, command, fitted
    from serving.server import Server, lmdeploy_command
    from serving.shape import read_shape

    rows = []
    for named in options.targets:
        name, _, place = named.partition("=")
        folder = Path(place or name).resolve()
        profile = fitted(EngineProfile(quant_policy=options.kv), read_shape(folder), name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        server = Server(lmdeploy_command(command(profile, folder, host="127.0.0.1", port=port, model_name=name)), url)
        try:
            server.wait_until_ready(600)
            drive(options, url, name, 1, is_open=False)  # the first requests are slower than all that follow
            for batch in options.batch:
                row = drive(options, url, name, batch, is_open=False)
                measured = {"model": name, "artifact": digest(folder), "device": gpus()[0].name}
                rows.append({**measured, "kv_bits": options.kv or 16, **row})
                print(f"{name}, {told(row)}", flush=True)
        finally:
            server.end()
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loop", choices=["closed", "open", "compare"])
    parser.add_argument("targets", nargs="+", help="a server's address, or NAME=FOLDER for compare")
    parser.add_argument("--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--rate", type=lambda text: [float(part) for part in text.split(",")], default=[1.0, 4.0, 16.0])
    parser.add_argument("--requests", type=int, help="of each run; four a batch or second, at least 8, unless given")
    parser.add_argument("--input", type=int, default=128, help="words of a prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until an answer is an error")
    parser.add_argument("--kv", type=int, default=0, choices=[0, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--plain", action="store_true", help="a server without ignore_eos: answers end where they end")
    parser.add_argument("--out", type=Path, help="write the rows here")
    options = parser.parse_args()
    if options.loop == "compare":
        rows, options.out = compare(options), options.out or RESULT
    else:
        loads = options.rate if options.loop == "open" else options.batch
        rows = [
            drive(options, options.targets[0], options.model, load, is_open=options.loop == "open") for load in loads
        ]
        print("\n".join(told(row) for row in rows))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    if any(row["errors"] for row in rows):
        raise SystemExit("some requests failed; see first_error")


if __name__ == "__main__":
    main()
