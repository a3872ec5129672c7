"""A mix divides its windows by weight, exactly, and tells which part is too short."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from compress.checkpoint.tokenizer import write_tokenizer
from compress.corpus import CorpusRecipe, Windows, make_windows, overlap, read_documents
from compress.corpus.cut import divided
from compress.corpus.windows import save_windows
from compress.errors import CompressError
from pipelines import overlap as stage

BASE = Path(__file__).parents[1] / "examples" / "demo" / "base"


@pytest.fixture
def tokenizer():
    made = Tokenizer(WordLevel({str(n): n for n in range(4000)}, "0"))
    made.pre_tokenizer = Whitespace()
    return made


@pytest.fixture
def texts(tmp_path):
    """Three texts whose words are below 1000, from there to 2000, and from there to 3000."""
    for name, first in (("law", 0), ("code", 1000), ("talk", 2000)):
        (tmp_path / f"{name}.txt").write_text(" ".join(str(first + n) for n in range(1000)))
    return tmp_path


def mix(windows=20, seed=0, **weights):
    parts = [{"source": f"{name}.txt", "weight": weight} for name, weight in weights.items()]
    return CorpusRecipe.model_validate({"source": parts, "windows": windows, "length": 16, "seed": seed})


def windows_of(recipe, texts, tokenizer):
    return make_windows(read_documents(recipe, texts), tokenizer, recipe)


# --- dividing


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (128, [1, 1], [64, 64]),
        (128, [3, 1], [96, 32]),
        (10, [1, 1, 1], [4, 3, 3]),  # among equals the earlier is rounded up
        (7, [0.5, 0.3, 0.2], [4, 2, 1]),
        (1, [1, 2], [0, 1]),
        (5, [2], [5]),
    ],
)
def test_windows_are_divided_by_largest_remainder(total, weights, expected):
    assert divided(total, [float(weight) for weight in weights]) == expected


def test_shares_add_up_and_are_less_than_one_from_exact():
    for total in range(1, 60):
        for weights in ([0.1, 0.2, 0.7], [1 / 3, 1 / 7, 1e-9], [5.0, 4.0, 3.0, 2.0, 1.0]):
            shares = divided(total, weights)
            assert sum(shares) == total
            assert all(abs(s - total * w / sum(weights)) < 1 for s, w in zip(shares, weights, strict=True))


def test_a_mix_holds_each_part_s_share_and_each_part_is_a_domain(texts, tokenizer):
    windows = windows_of(mix(law=2, code=1, talk=1), texts, tokenizer)
    assert [windows.domains.count(name) for name in ("law", "code", "talk")] == [10, 5, 5]
    for row, domain in zip(windows.tokens, windows.domains, strict=True):
        assert set(row // 1000) == {("law", "code", "talk").index(domain)}


def test_a_mix_is_the_same_for_the_same_seed_and_another_for_another(texts, tokenizer):
    first, again, other = (windows_of(mix(law=2, code=1, seed=seed), texts, tokenizer) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest


def test_each_token_knows_its_document(texts, tokenizer):
    rows = [{"text": " ".join(str(100 * n + k) for k in range(40)), "domain": "ab"[n % 2]} for n in range(5)]
    (texts / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [{"source": "code.txt"}, {"source": "many.jsonl"}]
    windows = windows_of(CorpusRecipe.model_validate({"source": parts, "windows": 16, "length": 16}), texts, tokenizer)
    expected = np.where(windows.tokens >= 1000, 0, windows.tokens // 100 + 1)
    assert np.array_equal(windows.documents, expected)
    assert set(windows.documents.flatten()) == set(range(6))


def test_a_mix_of_one_is_that_source(texts, tokenizer):
    alone = CorpusRecipe(source="law.txt", windows=20, length=16)
    assert windows_of(mix(law=5), texts, tokenizer).digest == windows_of(alone, texts, tokenizer).digest


def test_a_part_that_is_too_short_is_named_with_its_share(texts, tokenizer):
    (texts / "code.txt").write_text("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17")
    with pytest.raises(CompressError, match=r"^code\.txt: holds 1 windows of 16 tokens, 5 of the mix's 20 asked for; "):
        windows_of(mix(law=3, code=1), texts, tokenizer)


def test_a_weight_that_is_worth_no_window_is_refused(texts, tokenizer):
    with pytest.raises(
        CompressError, match=r"^code\.txt: no window for its weight 0\.001 of 3\.001, 20 windows in all"
    ):
        windows_of(mix(law=3, code=0.001), texts, tokenizer)


def test_a_domain_that_rows_name_stays(texts, tokenizer):
    rows = [{"text": " ".join(str(n) for n in range(200)), "domain": "verse"}]
    (texts / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [{"source": "law.jsonl"}, {"source": "code.txt"}]
    recipe = CorpusRecipe.model_validate({"source": parts, "windows": 4, "length": 16})
    assert windows_of(recipe, texts, tokenizer).domains == ["verse", "verse", "code", "code"]


# --- overlap with the evaluation


def numbered(*firsts, length=32):
    return np.array([range(first, first + length) for first in firsts], np.int32)


def test_texts_that_share_nothing_do_not_overlap():
    found = overlap(Windows(numbered(0, 100), ["a", "a"]), Windows(numbered(40, 200), ["a", "b"]))
    assert (found.share, found.tokens_share, found.windows) == (0, 0, [])
    assert found.by_domain == {"a": 0, "b": 0}


@pytest.mark.parametrize(("shared", "is_seen"), [(12, False), (13, True), (20, True)])
def test_a_run_of_thirteen_tokens_is_what_counts(shared, is_seen):
    evaluation = numbered(1000, 2000, 3000, 4000)
    evaluation[2, 5 : 5 + shared] = range(7, 7 + shared)
    found = overlap(Windows(numbered(0), ["x"]), Windows(evaluation, ["a", "a", "b", "a"]))
    assert found.windows == ([2] if is_seen else [])
    assert found.share == is_seen / 4
    assert found.tokens_share == is_seen * shared / evaluation.size
    assert found.by_domain == {"a": 0, "b": is_seen}


def test_a_run_of_which_not_all_counts_is_no_overlap():
    """A system prompt that all conversations share says nothing of what was learnt."""
    seen, evaluation = Windows(numbered(0), ["x"]), numbered(0, 100)
    counts = np.ones(evaluation.shape, bool)
    counts[0, ::12] = False
    assert overlap(seen, Windows(evaluation, ["a", "a"])).windows == [0]
    assert overlap(seen, Windows(evaluation, ["a", "a"], mask=counts)).windows == []


def test_marks_between_messages_are_no_text_that_is_shared():
    """Two conversations that begin alike share the markup and a few words, which is no run of text."""
    seen, evaluation = numbered(0), numbered(1000)
    evaluation[0, 3:19] = seen[0, 3:19]
    windows = Windows(seen, ["x"]), Windows(evaluation, ["a"])
    assert overlap(*windows).windows == [0]
    assert overlap(*windows, marks=frozenset({9, 17})).windows == []
    assert overlap(*windows, marks=frozenset({4})).windows == [0]  # fourteen words behind it are one


def test_windows_shorter_than_a_run_share_none():
    assert overlap(Windows(numbered(0, length=8), ["x"]), Windows(numbered(0, length=8), ["x"])).share == 0


def test_the_stage_warns_of_each_text_in_a_line_and_keeps_the_numbers(tmp_path, capsys):
    texts = {
        "evaluation": numbered(50, 100, 200, 300),
        "calibration": numbered(305, 900),
        "distillation": numbered(500),
    }
    for name, tokens in texts.items():
        (tmp_path / name).mkdir()
        save_windows(Windows(tokens, ["law", "law", "code", "code"][: len(tokens)]), tmp_path / name)
    write_tokenizer(BASE, tmp_path)
    stage.main(tmp_path, tmp_path / "tokenizer.json", tmp_path / "overlap.json")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "turbopress: warning: data.calibration: 25.0 % of the evaluation windows share a run of 13 tokens with it "
        "(21.1 % of the tokens, most in code), so their losses may look too small; take other text for one of the two"
    )
    found = json.loads((tmp_path / "overlap.json").read_text())
    assert found["calibration"]["windows"] == [3]
    assert found["distillation"]["share"] == 0
    assert list(stage.warnings(tmp_path)) == [line.removeprefix("turbopress: ")]
    assert list(stage.warnings(tmp_path / "not-run-yet.json")) == []
