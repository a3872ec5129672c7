"""A converted tokenizer gives SentencePiece's ids: on trained models, and on made-up ones meant to be awkward."""

import json
import random
from itertools import product

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece_models import model_of, texts, train
from tokenizers import Tokenizer

from compress.checkpoint.sentencepiece_bpe import convert, last_join
from compress.errors import CompressError

TRAINED = [(fallback, prefix) for fallback in (True, False) for prefix in (True, False)]


def both(model, tmp_path):
    """Returns the model as SentencePiece runs it, and converted."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return SentencePieceProcessor(model_file=str(path)), Tokenizer.from_str(json.dumps(convert(path)))


@pytest.mark.parametrize(("fallback", "prefix"), TRAINED)
def test_ids_are_those_of_sentencepiece(fallback, prefix, tmp_path):
    model = train(fallback, prefix)
    theirs, ours = both(model, tmp_path)
    strings = texts([p.piece for p in model.pieces if p.type == p.NORMAL], 4000)
    assert [e.ids for e in ours.encode_batch(strings)] == theirs.encode(strings)


@pytest.mark.parametrize("prefix", [True, False])
def test_decoding_gives_back_the_text_as_sentencepiece_does(prefix, tmp_path):
    model = train(True, prefix)
    theirs, ours = both(model, tmp_path)
    strings = texts([p.piece for p in model.pieces if p.type == p.NORMAL], 2000)
    decoded = ours.decode_batch([e.ids for e in ours.encode_batch(strings)])
    assert decoded == theirs.decode(theirs.encode(strings))
    assert decoded == [text.replace("▁", " ") for text in strings]


@pytest.mark.parametrize("prefix", [True, False])
def test_runs_of_every_length_agree(prefix, tmp_path):
    theirs, ours = both(train(True, prefix), tmp_path)
    runs = [
        left + char * size + right
        for char in " =-a\t…"
        for size in range(150)
        for left, right in product(("", "b"), ("", "the"))
    ]
    assert [e.ids for e in ours.encode_batch(runs)] == theirs.encode(runs)


@pytest.mark.parametrize("seed", range(40))
def test_any_vocabulary_in_any_order_agrees_on_all_short_strings(seed, tmp_path):
    rng = random.Random(seed)
    words = ["".join(word) for size in range(2, 7) for word in product("ab", repeat=size)]
    chosen = rng.sample(words, 24)
    theirs, ours = both(model_of(dict(zip(chosen, rng.sample(range(-99, 0), 24), strict=True))), tmp_path)
    strings = ["".join(word) for size in range(12) for word in product("ab", repeat=size)]
    assert [e.ids for e in ours.encode_batch(strings)] == theirs.encode(strings)


def test_equal_scores_agree_on_all_short_strings_or_are_refused(tmp_path):
    strings = ["".join(word) for size in range(8) for word in product("abc", repeat=size)]
    words = ["".join(word) for size in range(2, 5) for word in product("abc", repeat=size)]
    refused = 0
    for seed in range(60):
        rng = random.Random(seed)
        model = model_of({word: -rng.randint(1, 9) for word in rng.sample(words, 7)})
        try:
            theirs, ours = both(model, tmp_path)
        except CompressError:
            refused += 1
            continue
        assert [e.ids for e in ours.encode_batch(strings)] == theirs.encode(strings)
    assert 0 < refused < 50


def test_user_defined_pieces_are_never_split_or_joined(tmp_path):
    model = train(user_defined_symbols=["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_10]", "=>", "\n", "▁▁▁▁▁▁▁"])
    theirs, ours = both(model, tmp_path)
    strings = texts(
        [p.piece for p in model.pieces if p.type in (p.NORMAL, p.USER_DEFINED)] + ["[UNUSED_TOKEN_1"] * 99, 4000
    )
    assert [e.ids for e in ours.encode_batch(strings)] == theirs.encode(strings)


def test_every_piece_that_can_be_made_has_one_merge(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_of({"ab": -1, "bc": -2, "abc": -3, "aab": -4, "cbabc": -5}).SerializeToString())
    assert convert(path)["model"]["merges"] == [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "ab"]]


def test_the_last_join_of_a_run_takes_the_leftmost_pairs_first():
    assert last_join("aaa", {"aa": -1.0, "aaa": -2.0}) == ("aa", "a")
    assert last_join("aba", {"ab": -1.0, "ba": -1.0, "aba": -2.0}) == ("ab", "a")


def with_piece(kind, piece):
    model = model_of({"ab": -1, "abc": -2})
    next(p for p in model.pieces if p.piece == piece).type = model.SentencePiece.Type.Value(kind)
    return model


def without_piece(piece):
    model = model_of({"ab": -1, "abc": -2})
    del model.pieces[[p.piece for p in model.pieces].index(piece)]
    return model


def with_trainer(**settings):
    model = model_of({"ab": -1})
    for name, value in settings.items():
        setattr(model.trainer_spec, name, value)
    return model


def with_custom_prefix():
    model = model_of({"ab": -1}, add_dummy_prefix=True)
    model.pieces.add(piece="[X]", type=model.SentencePiece.USER_DEFINED)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (with_trainer(model_type=1), "model_type is UNIGRAM"),
        (with_trainer(treat_whitespace_as_suffix=True), "treat_whitespace_as_suffix"),
        (model_of({"ab": -1}, precompiled_charsmap=b"x", name="nmt_nfkc"), "'nmt_nfkc' is not the identity"),
        (model_of({"ab": -1}, remove_extra_whitespaces=True), "remove_extra_whitespaces"),
        (model_of({"ab": -1}, escape_whitespaces=False), "escape_whitespaces"),
        (with_custom_prefix(), r"'\[X\]' together with normalizer_spec.add_dummy_prefix"),
        (with_piece("UNUSED", "ab"), "unused piece 'ab'"),
        (with_piece("UNUSED", "c"), "unused piece 'c'"),
        (without_piece("c"), "'abc' is joined from 'ab' and 'c'"),
        (model_of({"ab": -1, "ba": -1}), "only position tells them apart"),
        (model_of({"ab": -2, "bc": -2, "abc": -1}), "part of one as good"),
    ],
)
def test_what_has_no_equal_is_refused(model, reason, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CompressError, match=reason) as refusal:
        convert(path)
    assert str(refusal.value).startswith(str(path))
    assert "save a tokenizer.json" in str(refusal.value)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_a_file_that_is_no_model_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CompressError, match="fetch the file again"):
        convert(tmp_path / "tokenizer.model")
