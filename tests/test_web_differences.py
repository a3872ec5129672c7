"""How two answers are cut, by a model's tokenizer or into words, and what of them is marked."""

import html
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from compress.checkpoint.tokenizer import write_tokenizer
from serving.web.differences import cut_by, cut_words, marked, share_equal

BASE = Path(__file__).parents[1] / "examples" / "demo" / "base"
TEXTS = ["", " ", "A dog, and a cat.", "你好，world  two\nlines", "日本語 mixed with words", "é🐈x  "]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The demo's, as artifacts have it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(BASE, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def whole_words():
    """A tokenizer that keeps no spaces."""
    made = Tokenizer(WordLevel({"<unk>": 0, "A": 1, "dog,": 2}, "<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text(text, tokenizer, whole_words):
    for cut in (cut_words, cut_by(tokenizer), cut_by(whole_words)):
        assert "".join(piece.text for piece in cut(text)) == text


def test_what_differs_is_marked_in_both_and_nothing_else():
    left, right = marked(cut_words("A dog is cute."), cut_words("A dog is very <b>old</b>."))
    assert left == "A dog is<mark> cute</mark>."
    assert right == f"A dog is<mark>{html.escape(' very <b>old</b>')}</mark>."
    assert marked(cut_words("same words"), cut_words("same words")) == ("same words", "same words")
    assert share_equal(cut_words("a b c d"), cut_words("a b x d")) == 0.75


def test_the_pieces_are_the_tokenizer_s_tokens_and_no_words(tokenizer):
    """Bytes of one character are one piece: half a character cannot be shown."""
    cut = cut_by(tokenizer)
    for text in ("A dog, and a cat. unbelievably", "é🐈x"):
        ids = [index for piece in cut(text) for index in piece.compared]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(cut("unbelievably")) > len(cut_words("unbelievably")) == 1
    assert [piece.text for piece in cut("🐈x")] == ["🐈", "x"]


def test_of_a_word_only_the_other_token_is_marked(tokenizer):
    (left, right), (whole, other) = (
        marked(*map(cut, ("an elephant", "an elephants"))) for cut in (cut_by(tokenizer), cut_words)
    )
    assert (left, right) == ("an elephant", "an elephant<mark>s</mark>")
    assert (whole, other) == ("an<mark> elephant</mark>", "an<mark> elephants</mark>")
