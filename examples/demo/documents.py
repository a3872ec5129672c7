"""A text and what kind of text it is, kept as JSON lines; InternLM2's chat markup; what makes two texts alike."""

import json
import lzma
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

MARKUP = re.compile(r"<\|im_(?:start|end)\|>")
WORD = re.compile(r"[a-z0-9']+|[\u4e00-\u9fff]")
NUM_OPENING_WORDS = 25
NUM_SHINGLE_WORDS = 13


@dataclass(frozen=True)
class Document:
    """One line of a file of text; `domain` is story, chat, speech or chinese."""

    text: str
    domain: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the text, the measure of every share and of bits per byte."""
        return len(self.text.encode())


def read_lines(path: Path) -> list[dict[str, str]]:
    """Returns the objects of a JSON lines file, compressed (.xz) or not."""
    with lzma.open(path, "rt", encoding="utf8") if path.suffix == ".xz" else path.open(encoding="utf8") as lines:
        return [json.loads(line) for line in lines]


def read_documents(path: Path) -> list[Document]:
    """Returns the documents of a JSON lines file, compressed (.xz) or not."""
    return [Document(row["text"], row["domain"]) for row in read_lines(path)]


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Writes one JSON object a line; a path that ends in .xz is compressed."""
    lines = "".join(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(lines) if path.suffix == ".xz" else lines)


def chat(question: str, answer: str) -> str:
    """Returns a conversation of two turns in InternLM2's markup."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def words(text: str) -> list[str]:
    """Returns the text's words in lower case (of Chinese its characters), without markup."""
    return WORD.findall(MARKUP.sub("", text).lower())


def shingles(text: str) -> set[int]:
    """Returns hashes of all runs of 13 words after the first 25: stories begin alike, what follows should not."""
    found = words(text)
    starts = range(NUM_OPENING_WORDS, len(found) - NUM_SHINGLE_WORDS + 1)
    return {hash(tuple(found[n : n + NUM_SHINGLE_WORDS])) for n in starts}
