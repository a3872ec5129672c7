"""Byte-level BPE (Llama 3, SmolLM2, GPT-2) in the words of llama.cpp: pieces, merges, and how a text is cut beforehand.

llama.cpp has the cutting rules in its own code and a file names one of them. So a pre-tokenizer is told apart by its
whole description, and one that is not listed here is refused: the nearest rule would split other words otherwise.
"""

from compress.checkpoint.special_tokens import Json, merge_pairs
from compress.errors import CompressError

LLAMA3 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
PRE: dict[tuple[tuple[str, object], ...], str] = {  # by what happens before the merges; llama.cpp's name for it
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", LLAMA3), ("ByteLevel", False)): "llama-bpe",
}
WHOLE_WORDS = ("llama-bpe",)  # a word that is a piece is taken before any merge


def is_byte_level(tokenizer: Json) -> bool:
    """Whether texts are spelled in bytes before anything else."""
    return any(step["type"] == "ByteLevel" for step in _steps(tokenizer))


def pre_name(tokenizer: Json) -> str:
    """llama.cpp's name of how this tokenizer cuts a text; refuses what it has no name for."""
    if tokenizer.get("normalizer"):
        raise CompressError(f"normalizer {tokenizer['normalizer'].get('type')}: llama.cpp has none")
    steps = _steps(tokenizer)
    if any(step.get("add_prefix_space") for step in steps):
        raise CompressError("pre_tokenizer puts a space in front; llama.cpp does not")
    name = PRE.get(tuple(_described(step) for step in steps))
    if name is None:
        kinds = ", ".join(step["type"] for step in steps)
        raise CompressError(f"pre_tokenizer ({kinds}) is none of {', '.join(PRE.values())} to the letter")
    if bool(tokenizer["model"].get("ignore_merges")) != (name in WHOLE_WORDS):
        raise CompressError(f"ignore_merges is {tokenizer['model'].get('ignore_merges')}, unlike llama.cpp's {name}")
    return name


def merge_lines(tokenizer: Json) -> list[str]:
    """Merges as "left right", the best first."""
    return [" ".join(pair) for pair in merge_pairs(tokenizer["model"])]


def _steps(tokenizer: Json) -> list[Json]:
    found = tokenizer.get("pre_tokenizer") or {}
    steps: list[Json] = found["pretokenizers"] if found.get("type") == "Sequence" else [found] if found else []
    return steps


def _described(step: Json) -> tuple[str, object]:
    """A step with what decides how it cuts."""
    if step["type"] == "ByteLevel":
        return "ByteLevel", step.get("use_regex", True)
    if step["type"] == "Digits":
        return "Digits", step["individual_digits"]
    plain = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    return step["type"], step["pattern"].get("Regex") if plain else None
