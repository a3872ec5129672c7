"""`turbopress quantize`: from a model folder and a text to an artifact, with no repository around."""

import json
import re

import pytest
from tiny_repository import WORDS, write_source

from compress.checkpoint.checkpoint import Checkpoint
from compress.quantize.journal import Journal
from registry.manifest import read, verify

FEW = ("--windows", 4, "--length", 16)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and a text, in which nothing else lies."""
    write_source(tmp_path / "model")
    rows = [{"text": " ".join(WORDS[5:])}, {"messages": [{"role": "user", "content": "word7 word8"}]}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return tmp_path


def test_a_folder_becomes_an_artifact_that_says_what_it_is_made_of(here, turbopress):
    status, out, err = turbopress("quantize", "model", "--calibration", "text.jsonl", "--to", "made/w4", *FEW)
    assert status == 0, err
    assert out == f"made/w4: ready; serve it: turbopress serve {here / 'made' / 'w4'}\n"
    said = re.search(r"made/w4: its linears lose (.*) % of their output on average, plain rounding (.*) %", err)
    assert 0 < float(said[1]) < float(said[2])
    manifest = verify(here / "made" / "w4")
    assert (manifest.kind, manifest.origin, manifest.recipe["from"]) == ("quantized", {"source": "model"}, "model")
    assert manifest.made_on["workers"] == 1
    assert {"tokenizer.json", "config.json", "README.md"} <= manifest.files.keys()
    assert Checkpoint(here / "made" / "w4").quantization["quant_method"] == "awq"
    assert sorted(path.name for path in here.iterdir()) == ["made", "model", "text.jsonl"]
    assert [path.name for path in (here / "made").iterdir()] == ["w4"]


def test_an_artifact_is_made_from_by_its_digest_and_learned_rounding_by_its_name(here, turbopress):
    first = ("--calibration", "text.jsonl", *FEW, "--format", "compressed-tensors", "--group-size", 32)
    status, _, err = turbopress("quantize", "model", "--to", "w4", *first, "--recipe", "awq-best", "--batch", 2)
    assert status == 0, err
    made = read(here / "w4")
    assert made.recipe["rounding"]["method"] == "learned"
    assert (made.recipe["group_size"], made.made_on["batch"]) == (32, 2)
    status, _, err = turbopress("quantize", "w4", "--to", "again", *first)
    assert (status, err) == (1, "turbopress: w4: is quantized already; start from its 16-bit original\n")


def test_what_was_interrupted_goes_on(here, turbopress, monkeypatch):
    arguments = ("quantize", "model", "--calibration", "text.jsonl", "--to", "w4", *FEW)
    finish = Journal.finish

    def finish_and_stop(self, layer, rows):
        finish(self, layer, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "finish", finish_and_stop)
        turbopress(*arguments)
    (shard,) = here.glob(".w4.incoming-*/model-00002-of-*")
    made = shard.stat().st_ino
    status, _, err = turbopress(*arguments)
    assert status == 0, err
    assert (here / "w4" / shard.name).stat().st_ino == made
    assert not list(here.glob(".w4.*"))


def test_what_cannot_be_made_is_refused_in_a_line(here, turbopress):
    def refused(*arguments):
        status, _, err = turbopress("quantize", *arguments, "--calibration", "text.jsonl")
        assert status == 1
        return err.removeprefix("turbopress: ").rstrip()

    (here / "there").mkdir()
    assert refused("model", "--to", "there").startswith("there: exists already, and nothing is written over; remove it")
    assert refused("model", "--to", "w4", "--group-size", 64) == (
        "--group-size: only 128 is taken by TurboMind, found 64"
    )
    assert refused("model", "--to", "w4", "--recipe", "gptq") == "--recipe: gptq; choose awq-light or awq-best"
    assert refused("internlm/nothing", "--to", "w4") == (
        "internlm/nothing: no such folder here; a model on a hub is named with --revision, its commit"
    )
    assert "windows of 16 tokens, 128 asked for; give a longer text" in refused("model", "--to", "w4", "--length", 16)
    write_source(here / "odd", num_attention_heads=2, num_key_value_heads=1, hidden_size=192, intermediate_size=256)
    assert refused("odd", "--to", "w4", *FEW).startswith("odd: ")
    assert not (here / "w4").exists()
