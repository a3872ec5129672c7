"""Two tokenizers are the same when every text becomes the same numbers; the first part that differs is named."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from compress.distill.vocabulary import require_same_tokenizer
from compress.errors import CompressError

PIECES = ["<unk>", "a", "b", "c", "ab", "abc"]
MODELS = {
    "BPE": models.BPE({p: n for n, p in enumerate(PIECES)}, [("a", "b"), ("ab", "c")], unk_token="<unk>"),
    "Unigram": models.Unigram([(piece, -float(n)) for n, piece in enumerate(PIECES)], unk_id=0),
    "WordLevel": models.WordLevel({p: n for n, p in enumerate(PIECES)}, "<unk>"),
}


def tokenizer(folder, kind="BPE", change=lambda content: None):
    """A folder with a tokenizer in which everything is said, changed as it is read."""
    made = Tokenizer(MODELS[kind])
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Split(" ", "removed")
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 6)])
    made.add_special_tokens(["<s>"])
    content = json.loads(made.to_str())
    change(content)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf8")
    return folder


def model(**said):
    return lambda content: content["model"].update(said)


def part(**said):
    return lambda content: content.update(said)


def exchange(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def older(content):
    """As libraries wrote it some years ago: merges are texts, and what goes without saying is not said."""
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    for key in ("ignore_merges", "byte_fallback", "dropout"):
        del content["model"][key]
    del content["decoder"]


@pytest.mark.parametrize("change", [older, part(truncation=None, decoder={"type": "Fuse"})])
def test_the_same_tokens_in_another_file_are_the_same_tokenizer(tmp_path, change):
    require_same_tokenizer(tokenizer(tmp_path / "a"), tokenizer(tmp_path / "b", change=change))


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("BPE", exchange, "token 1 is 'b', and 'a' in"),
        ("WordLevel", lambda content: content["model"]["vocab"].pop("c"), "token 3 is None, and 'c' in"),
        ("WordLevel", model(type="WordPiece", continuing_subword_prefix="#", max_input_chars_per_word=9),
         "model.type is 'WordPiece', and 'WordLevel' in"),
        ("WordLevel", model(unk_token="a"), "model.unk_token is 'a', and '<unk>' in"),
        ("Unigram", lambda content: content["model"]["vocab"][4].__setitem__(1, -0.5),
         r"the score of token 4 \('ab'\) is -0.5, and -4.0 in"),
        ("Unigram", model(byte_fallback=True), "model.byte_fallback is True, and False in"),
        ("Unigram", model(unk_id=1), "model.unk_id is 1, and 0 in"),
        ("BPE", lambda content: content["model"]["merges"].pop(), "model.merges.1.0 is None, and 'ab' in"),
        ("BPE", model(ignore_merges=True), "model.ignore_merges is True, and False in"),
        ("BPE", model(byte_fallback=True), "model.byte_fallback is True, and False in"),
        ("BPE", lambda content: content["added_tokens"][0].update(lstrip=True),
         r"lstrip of token 6 \('<s>'\) is True, and False in"),
        ("BPE", lambda content: content["added_tokens"][0].update(special=False),
         r"special of token 6 \('<s>'\) is False, and True in"),
        ("BPE", part(normalizer={"type": "NFC"}), "normalizer.type is 'NFC', and 'Lowercase' in"),
        ("BPE", part(pre_tokenizer=None), "pre_tokenizer.type is None, and 'Split' in"),
        ("BPE", part(pre_tokenizer={"type": "Split", "pattern": {"String": "x" * 99}, "behavior": "Removed",
                                    "invert": False}), "pre_tokenizer.pattern.String is 'x{58}…, and ' ' in"),
        ("BPE", part(post_processor=None), "post_processor.type is None, and 'TemplateProcessing' in"),
        ("BPE", lambda content: content["post_processor"]["special_tokens"]["<s>"].update(ids=[5]),
         "post_processor.special_tokens.<s>.ids.0 is 5, and 6 in"),
    ],
)  # fmt: skip
def test_the_first_part_that_differs_is_named_with_both_values(tmp_path, kind, change, expected):
    ours, theirs = tokenizer(tmp_path / "a", kind), tokenizer(tmp_path / "b", kind, change)
    with pytest.raises(CompressError) as error:
        require_same_tokenizer(ours, theirs)
    remedy = "distil from a teacher of the student's own family"
    assert error.match(rf"^{theirs}/tokenizer.json: {expected} {ours}/tokenizer.json; {remedy}$")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [part(model=None), lambda content: content["model"].pop("vocab")])
def test_what_is_no_tokenizer_is_named(tmp_path, change):
    with pytest.raises(CompressError, match=r"b/tokenizer.json: no tokenizer \(.*\); make or fetch the model again$"):
        require_same_tokenizer(tokenizer(tmp_path / "a"), tokenizer(tmp_path / "b", change=change))
