"""Puts the demo's text together and splits it: what is trained on, calibrated on, distilled on and held out.

    python examples/demo/make_corpus.py WRITTEN TRAIN.jsonl.xz

WRITTEN is the folder that write_text.py leaves; TRAIN.jsonl.xz is for make_tokenizer.py and train.py; the other three
splits go to `text/`. Whatever is cut from one work (a speech, a chapter) stays in one split, and evaluation speeches
are of years that nothing else has text from. A document that shares a run of 13 words with another split's is dropped.

A third of the stories are told in a chat instead: the user begins and the assistant goes on, or the user asks for a
story. So a small model learns that the markup changes nothing about telling a story.
"""

# ruff: noqa: S311 - a split is drawn by seed, nothing here is secret

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from documents import Document, chat, read_lines, shingles, words, write_documents
from public_text import Work, fetch_chapters, fetch_speeches, pieces

CONTINUED_SHARE = 0.25
REQUESTED_SHARE = 0.08
HELD_OUT_SINCE = 2000
# Bytes of each domain; the rest is for training.
SIZES = {
    "evaluation": {"story": 200_000, "chat": 120_000, "speech": 120_000, "chinese": 60_000},
    "calibration": {"story": 200_000, "chat": 120_000, "speech": 120_000, "chinese": 60_000},
    "distillation": {"story": 1_400_000, "chat": 700_000, "speech": 700_000, "chinese": 200_000},
}
Splits = dict[str, list[Document]]


def distinct(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Yields the written texts that are neither equal to nor share a late run of words with one before."""
    texts: set[str] = set()
    runs: set[int] = set()
    for row in rows:
        text, own = " ".join(words(row["text"])), shingles(row["text"])
        if text not in texts and not own & runs:
            texts.add(text)
            runs |= own
            yield row


def continued(story: str, rng: random.Random) -> str:
    """Returns the chat in which the user begins the story, at most for two sentences, and the assistant goes on."""
    sentences = list(re.finditer(r"[.!?][\"']?(?=\s)", story))[:2]
    opening = story[: sentences[-1].end()] if sentences else story[: len(story) // 2]
    cuts = [match.start() for match in re.finditer(r"\s", opening + " ")][2:]
    cut = rng.choice(cuts or [len(opening)])
    return chat(story[:cut], story[cut:].lstrip())


def requested(story: str, prompt: str, rng: random.Random) -> str:
    """Returns the chat in which the user asks for this story, every second time without the thing in it."""
    question = prompt.replace("bedtime story", "story")
    brief = re.sub(r"( named \w+) and .*", r"\1.", question)
    return chat(rng.choice([question, brief]), story)


def formed(row: dict[str, str], rng: random.Random) -> Document:
    """Returns a written text as the document it becomes."""
    if row["domain"] == "chat":
        return Document(chat(row["prompt"], row["text"]), "chat")
    draw = rng.random()
    if draw < CONTINUED_SHARE:
        return Document(continued(row["text"], rng), "chat")
    if draw < CONTINUED_SHARE + REQUESTED_SHARE:
        return Document(requested(row["text"], row["prompt"], rng), "chat")
    return Document(row["text"], "story")


def cut(work: Work, domain: str) -> list[Document]:
    """Returns a work's pieces."""
    return [Document(piece, domain) for piece in pieces(work.text)]


def take_(groups: list[list[Document]], size_bytes: int) -> list[Document]:
    """Returns the documents of the last groups, about `size_bytes` of them, and removes these groups from the list."""
    taken: list[Document] = []
    while groups and sum(document.size_bytes for document in taken) < size_bytes:
        taken += groups.pop()
    return taken


def split(groups: list[list[Document]], domain: str, held: Iterable[str], rng: random.Random) -> Splits:
    """Returns one domain's held splits, and the rest for training; the documents of a group stay together."""
    rest = rng.sample(groups, len(groups))
    taken = {name: take_(rest, SIZES[name][domain]) for name in held}
    return {**taken, "train": [document for group in rest for document in group]}


def split_speeches(speeches: list[Work], rng: random.Random) -> Splits:
    """Returns the speeches' splits: evaluation pieces from all late years, everything else from early ones."""
    late = [[piece] for speech in speeches if speech.year >= HELD_OUT_SINCE for piece in cut(speech, "speech")]
    early = [cut(speech, "speech") for speech in speeches if speech.year < HELD_OUT_SINCE]
    others = split(early, "speech", ("calibration", "distillation"), rng)
    return {**others, "evaluation": take_(rng.sample(late, len(late)), SIZES["evaluation"]["speech"])}


def without_shared(documents: list[Document], others: list[Document]) -> list[Document]:
    """Returns the documents that share no late run of words with any of the others."""
    own = [shingles(document.text) for document in documents]
    wanted = set().union(*own)
    shared = {run for other in others for run in shingles(other.text) & wanted}
    return [document for document, runs in zip(documents, own, strict=True) if not runs & shared]


def make_splits(written: list[dict[str, str]], seed: int) -> Splits:
    """Returns all splits, each in an order of its own."""
    rng = random.Random(seed)
    documents = [formed(row, rng) for row in distinct(written)]
    parts = [split([[d] for d in documents if d.domain == name], name, SIZES, rng) for name in ("story", "chat")]
    parts.append(split_speeches(fetch_speeches(), rng))
    parts.append(split([cut(work, "chinese") for work in fetch_chapters()], "chinese", SIZES, rng))
    splits = {name: [document for part in parts for document in part[name]] for name in ("train", *reversed(SIZES))}
    apart: Splits = {}
    for name, found in splits.items():
        kept = without_shared(found, [document for earlier in apart.values() for document in earlier])
        apart[name] = rng.sample(kept, len(kept))
    return apart


def report(splits: Splits) -> None:
    """Prints the documents and bytes of each split and domain."""
    for name, documents in splits.items():
        count, size_bytes = Counter(d.domain for d in documents), Counter[str]()
        for document in documents:
            size_bytes[document.domain] += document.size_bytes
        for domain in count:
            print(f"{name:12} {domain:8} {count[domain]:6} documents {size_bytes[domain]:9} bytes")


def main(
    written: Annotated[Path, typer.Argument(help="folder of text-N.jsonl.xz")],
    train: Annotated[Path, typer.Argument(help="file for the training text")],
    text: Annotated[Path, typer.Option(help="folder for the other splits")] = Path(__file__).parent / "text",
    seed: int = 0,
) -> None:
    """Leaves the four splits."""
    splits = make_splits([row for path in sorted(written.glob("*.jsonl.xz")) for row in read_lines(path)], seed)
    for name, documents in splits.items():
        write_documents(train if name == "train" else text / f"{name}.jsonl", documents)
    report(splits)


if __name__ == "__main__":
    typer.run(main)
