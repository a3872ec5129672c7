"""In which writing a window is, as far as that can be told from its letters: what metrics are split by."""

import unicodedata
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from compress.corpus import Windows

WRITINGS = {"CJK": "chinese", "HIRAGANA": "japanese", "KATAKANA": "japanese", "HANGUL": "korean"}  # others keep theirs
NONE = "none"  # digits, marks and blanks only


def languages(windows: Windows, tokenizer: Path) -> list[str]:
    """The language of each window, by the writing that most of its letters are in."""
    reader = Tokenizer.from_file(str(tokenizer))
    return [writing(text) for text in reader.decode_batch(windows.tokens.tolist())]


def writing(text: str) -> str:
    """chinese, japanese, korean, or the name of the alphabet (latin, cyrillic, arabic, …) of most letters."""
    found = Counter(unicodedata.name(letter, "UNKNOWN").split(" ")[0] for letter in text if letter.isalpha())
    kana = found["HIRAGANA"] + found["KATAKANA"]
    if kana and 5 * kana > found["CJK"]:
        return "japanese"  # which is written with Chinese letters too
    return next((WRITINGS.get(name, name.lower()) for name, _ in found.most_common(1)), NONE)
