"""Text becomes the same windows every time, and a text that will not do is refused with its place."""

import hashlib
import json
import struct

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from compress.corpus import CorpusRecipe, Document, load_windows, make_windows, read_documents, save_windows
from compress.errors import CompressError

BOS = 1


@pytest.fixture
def tokenizer():
    """One id a word, `n` for the word "n", and a BOS before each document."""
    vocabulary = {"<unk>": 0, "<s>": BOS} | {str(n): n for n in range(2, 2000)}
    made = Tokenizer(WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return made


def recipe(source="text.jsonl", windows=3, length=16, **more):
    return CorpusRecipe(source=source, windows=windows, length=length, **more)


def words(first, count):
    return " ".join(str(n) for n in range(first, first + count))


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf8")


# --- reading


def test_jsonl_txt_and_parquet_hold_the_same_documents(tmp_path):
    texts = ["first text", "second text"]
    write_lines(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("first text")
    expected = [Document(text, "text") for text in texts]
    assert read_documents(recipe("a.jsonl"), tmp_path) == expected
    assert read_documents(recipe("a.parquet"), tmp_path) == expected
    assert read_documents(recipe("a.txt"), tmp_path) == expected[:1]


def test_a_domain_is_read_wherever_rows_name_one(tmp_path):
    rows = [{"text": "one", "domain": "law"}, {"text": "two", "domain": "code"}]
    write_lines(tmp_path / "a.jsonl", *rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [Document("one", "law"), Document("two", "code")]
    assert read_documents(recipe("a.jsonl"), tmp_path) == expected
    assert read_documents(recipe("a.parquet"), tmp_path) == expected


def test_separators_that_json_allows_inside_a_text_end_no_line(tmp_path):
    text = "one\u2028two\u0085three"
    write_lines(tmp_path / "a.jsonl", {"text": text}, {"text": "next"})
    assert [document.text for document in read_documents(recipe("a.jsonl"), tmp_path)] == [text, "next"]


@pytest.mark.parametrize("bad", ["{broken", '{"txt": "x"}', '["text"]', '{"text": null}', '{"text": 7}', "", "3"])
def test_a_bad_line_is_refused_with_its_number(tmp_path, bad):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n{"text": "never read"}\n'.replace("\n\n", f"\n{bad}\n"))
    with pytest.raises(CompressError) as refused:
        read_documents(recipe("a.jsonl"), tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'a.jsonl'}:2: expected")
    assert repr(bad) in str(refused.value)


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.txt", "gone.parquet"])
def test_a_missing_file_is_refused_with_its_place(tmp_path, name):
    with pytest.raises(CompressError, match=rf"{name}: not found; data sources are relative"):
        read_documents(recipe(name), tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_text_that_is_not_utf8_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(CompressError, match=r"not UTF-8 at byte 13; save it as UTF-8"):
        read_documents(recipe(name), tmp_path)


def test_a_damaged_parquet_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(CompressError, match=r"a\.parquet: damaged or no parquet file"):
        read_documents(recipe("a.parquet"), tmp_path)


@pytest.mark.parametrize("column", [{"words": ["x", "y"]}, {"text": ["x", None]}])
def test_a_parquet_row_without_text_is_refused(tmp_path, column):
    pyarrow.parquet.write_table(pyarrow.table(column), tmp_path / "a.parquet")
    with pytest.raises(CompressError, match=r'a\.parquet: row [01]: expected \{"text": "…"\} or \{"messages": .*found'):
        read_documents(recipe("a.parquet"), tmp_path)


@pytest.mark.parametrize("source", ["nobody/no-such-data-set", "no-such-folder", "text.csv"])
def test_a_data_set_that_cannot_be_had_is_one_clear_line(tmp_path, monkeypatch, source):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(CompressError) as refused:
        read_documents(recipe(source), tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{source}: no .jsonl, .txt or .parquet file, and as a data set it does not load (")
    assert "\n" not in message


def test_a_folder_that_datasets_loads_is_a_source_relative_to_the_root(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "root" / "set").mkdir(parents=True)
    write_lines(tmp_path / "root" / "set" / "train.jsonl", {"text": "one", "domain": "law"}, {"text": "two"})
    found = read_documents(recipe("set"), tmp_path / "root")
    assert found == [Document("one", "law"), Document("two", "text")]


# --- windows


def test_documents_begin_with_bos_and_are_laid_end_to_end(tokenizer):
    documents = [Document(words(2, 20), "text"), Document(words(30, 26), "text")]
    windows = make_windows(documents, tokenizer, recipe(windows=3))
    assert windows.tokens.flatten().tolist() == [BOS, *range(2, 22), BOS, *range(30, 56)]
    assert windows.tokens.dtype == np.int32


def test_too_little_text_is_refused_with_source_found_and_asked(tokenizer):
    with pytest.raises(CompressError, match=r"^text\.jsonl: holds 2 windows of 16 tokens, 3 asked for; give a longer"):
        make_windows([Document(words(2, 40), "text")], tokenizer, recipe(windows=3))


def test_one_seed_draws_the_same_windows_and_another_draws_others(tokenizer):
    documents = [Document(words(2, 1500), "text")]
    first, again, other = (make_windows(documents, tokenizer, recipe(windows=8, seed=seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.tokens, again.tokens)
    assert first.digest == again.digest != other.digest
    assert len({tuple(row) for row in first.tokens.tolist()}) == 8


def test_no_window_mixes_domains(tokenizer):
    low, high = range(2, 1000), range(1000, 1990)
    documents = [
        Document(words(start, 70), "low" if start in low else "high")
        for start in (2, 1000, 200, 1200, 400, 1400, 600, 1600)
    ]
    windows = make_windows(documents, tokenizer, recipe(windows=30))
    assert set(windows.domains) == {"low", "high"}
    for row, domain in zip(windows.tokens.tolist(), windows.domains, strict=True):
        inside = low if domain == "low" else high
        assert all(token == BOS or token in inside for token in row)


def test_the_digest_is_the_sha256_of_little_endian_int32_ids(tokenizer):
    windows = make_windows([Document(words(2, 100), "text")], tokenizer, recipe())
    ids = windows.tokens.flatten().tolist()
    assert windows.digest == hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()


# --- keeping them


@pytest.fixture
def saved(tmp_path, tokenizer):
    documents = [Document(words(2, 100), "law"), Document(words(500, 100), "code")]
    windows = make_windows(documents, tokenizer, recipe(windows=5))
    save_windows(windows, tmp_path)
    return windows


def test_saved_windows_come_back(tmp_path, saved):
    returned = load_windows(tmp_path)
    assert np.array_equal(returned.tokens, saved.tokens)
    assert returned.domains == saved.domains
    assert json.loads((tmp_path / "corpus.json").read_text())["sha256"] == saved.digest


def test_altered_tokens_are_refused(tmp_path, saved):
    tokens = saved.tokens.copy()
    tokens[1, 3] += 1
    save_file({"tokens": tokens}, tmp_path / "windows.safetensors")
    with pytest.raises(CompressError, match="token ids do not match"):
        load_windows(tmp_path)


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("name", ["corpus.json", "windows.safetensors"])
@pytest.mark.parametrize("content", [None, b"cut off"])
def test_a_missing_or_damaged_file_is_refused(tmp_path, name, content):
    (tmp_path / name).unlink()
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CompressError, match=r"no windows \(.+\); run `dvc repro corpus` again"):
        load_windows(tmp_path)
