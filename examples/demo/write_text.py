"""SmolLM2 writes the demo's stories and chats.

    python examples/demo/write_text.py WRITER OUT --seconds 300        # a GPU with 50 GiB free; fewer --rows need less
    python examples/demo/write_text.py WRITER OUT --rows 8 --waves 1   # a look at some samples on a CPU

WRITER is the folder that get_writer.py makes. Text comes in waves: as many prompts as there are rows, written side by
side until nearly all have ended. A text that was too long for its row keeps its whole sentences. What is not clean,
plain English or goes in circles is thrown away: about half. OUT receives text-N.jsonl.xz with lines {"text", "domain",
"prompt"}: "text" is the story, or the answer to the chat message "prompt".

The weights are SmolLM2-135M-Instruct's (Apache-2.0), whose licence lays no claim to what the model writes.
"""

import json
import lzma
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer
from prompts import Prompt, prompts
from sampling import Sampler, Taste
from transformers import AutoTokenizer, PreTrainedTokenizerBase

NUM_PROMPT_SLOTS = 128
STORY_LENGTHS = range(250, 2000)  # characters
CHAT_LENGTHS = range(40, 500)
PLAIN = re.compile(r"[A-Za-z0-9 \n.,;:!?'\"()-]+")
UNWANTED_WORDS = (
    "ai|language model|machine learning|i'm sorry|i cannot assist|i can't assist|smollm|hugging|the moral|this story"
    "|the story|his story|her story|great example|the hero|lyrically|reminds us|reminder|profound|author|bedtime"
    "|the answer is|sentences|http|title:|note:|sex|sexy|drunk|beer|wine|gun|kill|killed|blood|murder|suicide|god"
)
UNWANTED = re.compile(rf"\b({UNWANTED_WORDS})\b|[0-9]{{5}}|[0-9]\. ", re.IGNORECASE)
CURLY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})


@dataclass(frozen=True)
class Row:
    """One line of the output."""

    text: str
    domain: str
    prompt: str


@dataclass(frozen=True)
class Deadline:
    """When to stop: no wave starts after `seconds`, and there are at most `num_waves`."""

    seconds: float
    num_waves: int
    started_at: float

    def elapsed_s(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self.started_at


def tidy(text: str) -> str:
    """Returns the text with typewriter quotes and no stray spaces."""
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.translate(CURLY).splitlines())
    return "\n".join(line for line in lines if line)


def whole_sentences(text: str) -> str:
    """Returns the text up to the end of its last whole sentence."""
    ends = list(re.finditer(r"[.!?][\"']?(?=\s|$)", text))
    return text[: ends[-1].end()] if ends else ""


def goes_in_circles(text: str) -> bool:
    """True if the text keeps coming back to the same words; four words in a row may hardly ever come again."""
    words = re.findall(r"[a-z']+", text.lower())
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    long_words = [word for word in words if len(word) > 3]
    if not runs or not long_words:
        return False
    most_said = Counter(long_words).most_common(1)[0][1]
    doubled = any(a == b for a, b in pairwise(words) if a not in ("had", "that", "very"))
    poor = len(words) > 60 and len(set(words)) < 4 * len(words) ** 0.56
    return doubled or poor or len(set(runs)) < 0.9 * len(runs) or most_said > max(4, len(words) // 12)


def is_clean(text: str, lengths: range) -> bool:
    """True if the text is plain English prose of a fitting length that does not go in circles."""
    plain = len(text) in lengths and PLAIN.fullmatch(text) is not None
    return plain and UNWANTED.search(text) is None and not goes_in_circles(text)


def clean_rows(tokenizer: PreTrainedTokenizerBase, wave: list[Prompt], tokens: list[list[int]]) -> list[Row]:
    """Returns the clean rows of what the sampler wrote."""
    rows = []
    for prompt, text in zip(wave, tokenizer.batch_decode(tokens, clean_up_tokenization_spaces=False), strict=True):
        whole = whole_sentences(tidy(prompt.opening + text))
        if is_clean(whole, STORY_LENGTHS if prompt.domain == "story" else CHAT_LENGTHS):
            rows.append(Row(whole, prompt.domain, prompt.request))
    return rows


def write_shard(path: Path, rows: list[Row]) -> int:
    """Writes rows as compressed JSON lines and returns the file's size in bytes."""
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    return path.write_bytes(lzma.compress(lines.encode()))


def write_shards(out: Path, rows: list[Row], num_shards: int) -> None:
    """Writes the rows to `num_shards` files side by side (the compressor leaves Python's lock)."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"text-{n}.jsonl.xz" for n in range(num_shards)]
    with ThreadPoolExecutor(num_shards) as pool:
        sizes = pool.map(write_shard, paths, [rows[n::num_shards] for n in range(num_shards)])
        for path, size in zip(paths, sizes, strict=True):
            print(f"{path.name}: {size / 2**20:.1f} MiB")


def report(rows: list[Row], num_asked: int, elapsed_s: float) -> None:
    """Prints how much has been written so far."""
    size = sum(len(row.text) for row in rows)
    print(f"{elapsed_s:6.1f} s  {len(rows)} of {num_asked} kept  {size / 1e6:.2f} MB", flush=True)


def show(rows: list[Row]) -> None:
    """Prints rows to look at."""
    for row in rows:
        print(f"[{row.domain}] {row.prompt}\n{row.text}\n", flush=True)


def write_rows(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    source: Iterator[Prompt],
    num_rows: int,
    deadline: Deadline,
    num_shown: int,
) -> list[Row]:
    """Returns the clean rows of all waves that start in time; a wave is cleaned while the next one is written."""
    kept: list[Row] = []
    reading: Future[list[Row]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for number in count(1):
            wave = list(islice(source, num_rows))
            tokens = sampler.write(tokenizer([prompt.markup() for prompt in wave])["input_ids"], finished_share=0.95)
            if reading is not None:
                kept += reading.result()
            reading = pool.submit(clean_rows, tokenizer, wave, tokens)
            if number == 1:
                show(reading.result()[:num_shown])
            report(kept, (number - 1) * num_rows, deadline.elapsed_s())
            if number == deadline.num_waves or deadline.elapsed_s() > deadline.seconds:
                break
        return kept + reading.result()


def main(
    writer: Annotated[Path, typer.Argument(help="SmolLM2 as get_writer.py leaves it")],
    out: Annotated[Path, typer.Argument(help="folder for the compressed lines")],
    seconds: Annotated[float, typer.Option(help="no new wave starts after this long")] = 300.0,
    waves: Annotated[int, typer.Option(help="at most so many waves")] = 10_000,
    rows: Annotated[int, typer.Option(help="texts written side by side")] = 4096,
    new_tokens: Annotated[int, typer.Option(help="longest text in tokens")] = 256,
    chat_share: Annotated[float, typer.Option(help="share of prompts that are chat")] = 0.3,
    shards: Annotated[int, typer.Option(help="number of output files")] = 4,
    seed: int = 0,
    show_samples: Annotated[int, typer.Option(help="print so many samples of the first wave")] = 4,
) -> None:
    """Writes for `seconds` and leaves the clean rows in `out`."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(writer)
    sampler = Sampler(writer, rows, NUM_PROMPT_SLOTS, new_tokens, Taste(), device)
    deadline = Deadline(seconds, waves, time.monotonic())
    kept = write_rows(sampler, tokenizer, prompts(seed, chat_share), rows, deadline, show_samples)
    print(f"{len(kept)} texts, {sum(len(row.text) for row in kept) / 1e6:.1f} MB, in {deadline.elapsed_s():.0f} s")
    write_shards(out, kept, shards)


if __name__ == "__main__":
    typer.run(main)
