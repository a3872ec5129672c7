"""One client process of benchmarks/serving.py: asks as it is told on stdin, and prints when the answers' pieces came.

A process of Python reads some ten thousand pieces a second, which a GPU exceeds; so there are several, and each has its
share of the load. Poisson arrivals of several are Poisson arrivals together. Only the standard library is used.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

WORDS = [
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
]
PERCENTILES = (50, 90, 99)


@dataclass
class Answer:
    """When the pieces of one answer came, in seconds after it was asked, and that in seconds of the run."""

    pieces_s: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str = ""
    end_s: float = 0.0
    asked_s: float = 0.0


@dataclass(frozen=True)
class Job:
    """A client's share of a run. `seconds` is for how long it begins answers; or there are so many `requests`."""

    url: str
    body: dict
    input_words: int
    seed: int
    is_open: bool
    load: float  # answers at once, or arrivals a second
    seconds: float | None
    requests: int | None
    patience_s: float
    begins_at: float  # time.time() of all clients


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


One = Callable[[int], Awaitable[Answer]]


async def closed_loop(one: One, batch: int, requests: int | None, seconds: float = math.inf) -> list[Answer]:
    """`batch` at once, the next when one ends, until so many are asked or so long has passed; all are answered."""
    answers: list[Answer] = []
    start = time.perf_counter()
    waiting = iter(range(requests)) if requests else _until(start + seconds)

    async def worker() -> None:
        for number in waiting:
            asked_s = time.perf_counter() - start
            answers.append(await one(number))
            answers[-1].asked_s = asked_s

    await asyncio.gather(*(worker() for _ in range(batch)))
    return answers


async def open_loop(
    one: One, rate: float, requests: int | None, seconds: float = math.inf, seed: int = 0
) -> list[Answer]:
    """Arrivals at `rate` a second, exponentially apart, whatever the server does; all are answered."""
    draw, start, tasks, asked_s = random.Random(seed), time.perf_counter(), [], []
    for number in iter(range(requests)) if requests else _until(start + seconds):
        asked_s.append(time.perf_counter() - start)
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(draw.expovariate(rate))
    answers = list(await asyncio.gather(*tasks))
    for answer, at_s in zip(answers, asked_s, strict=True):
        answer.asked_s = at_s
    return answers


def _until(end: float) -> Iterator[int]:
    """Numbers, for as long as it is before `end`."""
    number = 0
    while time.perf_counter() < end:
        yield number
        number += 1


def summary(answers: Sequence[Answer], elapsed_s: float) -> dict:
    """What people would want to know of a run; tokens and answers a second are those that came in `elapsed_s`."""
    whole = [answer for answer in answers if not answer.error]
    gaps = [b - a for answer in whole for a, b in zip(answer.pieces_s, answer.pieces_s[1:], strict=False)]
    return {
        "requests": len(answers),
        "errors": len(answers) - len(whole),
        "first_error": next((answer.error for answer in answers if answer.error), ""),
        "elapsed_s": elapsed_s,
        "output_tokens": sum(_tokens(answer) for answer in whole),
        "output_tokens_a_second": sum(_tokens(answer) * _share(answer, elapsed_s) for answer in whole) / elapsed_s,
        "requests_a_second": sum(answer.asked_s + answer.end_s <= elapsed_s for answer in whole) / elapsed_s,
        "first_token_s": percentiles([answer.pieces_s[0] for answer in whole]),
        "between_tokens_s": percentiles(gaps),
        "whole_answer_s": percentiles([answer.end_s for answer in whole]),
    }


def _tokens(answer: Answer) -> int:
    return answer.tokens or len(answer.pieces_s)


def _share(answer: Answer, elapsed_s: float) -> float:
    """How much of an answer came before so many seconds of the run."""
    return sum(answer.asked_s + piece <= elapsed_s for piece in answer.pieces_s) / len(answer.pieces_s)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The value below which so many of 100 lie (nearest rank); empty for no values."""
    ordered = sorted(values)
    return {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in PERCENTILES} if ordered else {}


async def run(job: Job) -> list[Answer]:
    """The answers to a client's share."""

    async def one(number: int) -> Answer:
        text = prompt(job.input_words, job.seed * 1_000_003 + number)
        return await ask(job.url, {**job.body, "prompt": text}, job.patience_s)

    await asyncio.sleep(max(0.0, job.begins_at - time.time()))
    seconds = math.inf if job.seconds is None else job.seconds
    if job.is_open:
        return await open_loop(one, job.load, job.requests, seconds, job.seed)
    return await closed_loop(one, int(job.load), job.requests, seconds)


if __name__ == "__main__":
    print(json.dumps([asdict(answer) for answer in asyncio.run(run(Job(**json.load(sys.stdin))))]))
