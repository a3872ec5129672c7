"""A text in a model's own words: windows of the size asked for, drawn from the model's own distribution."""

import json

import numpy as np
import pytest
import torch
from tiny import CONFIG, windows, write_internlm2
from tiny_repository import write_base, write_params, write_source, write_text

from compress.checkpoint.load import load_model
from compress.corpus import Windows, load_windows, overlap, save_windows
from compress.distill.generate import generate
from compress.distill.recipe import GenerateRecipe
from compress.errors import CompressError
from pipelines import generate as stage
from pipelines import overlap as overlaps
from pipelines.params import ParamsError, load

SAID = {"windows": 5, "length": 20, "prompt_tokens": 6, "batch": 2}
TOKENS = np.arange(16, dtype="int32").reshape(4, 4) % 7
SMALL = CONFIG | {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 97}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_internlm2(folder, SMALL)
    return load_model(folder)


def recipe(**said):
    return GenerateRecipe.model_validate(SAID | said)


def prompts(count=3):
    return windows(count, 16, 97)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_windows_begin_as_the_prompts_do_each_in_turn(model, precision):
    written = generate(model, prompts(), recipe(precision=precision))
    assert written.shape == (5, 20)
    assert torch.equal(written[:, :6], prompts()[[0, 1, 2, 0, 1], :6])
    assert not torch.equal(written[0], written[3])  # the same beginning, other words


def test_a_seed_gives_the_same_text_and_another_gives_another(model):
    first, again, other = (generate(model, prompts(), recipe(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("said", [{"temperature": 1e-4}, {"top_p": 1e-6}])
def test_with_no_chance_left_each_token_is_the_likeliest_of_a_pass_without_cache(model, said):
    written = generate(model, prompts(), recipe(**said))
    with torch.no_grad():
        likeliest = model(written).logits.argmax(-1)
    assert torch.equal(written[:, 6:], likeliest[:, 5:-1])


def test_tokens_come_as_often_as_the_model_says_and_top_p_leaves_out_the_unlikely(model):
    said = {"windows": 4000, "length": 16, "prompt_tokens": 15, "batch": 1000}
    drawn = {p: generate(model, prompts(1), recipe(**said, top_p=p))[:, -1] for p in (1.0, 0.5)}
    with torch.no_grad():
        p = model(prompts(1)[:, :15]).logits[0, -1].softmax(-1)
    shares = torch.bincount(drawn[1.0], minlength=97) / 4000
    assert (shares - p).abs().max() < 4 * (p.max() / 4000).sqrt()
    order = p.sort(descending=True)
    kept = order.indices[: int((order.values.cumsum(0) < 0.5).sum()) + 1]
    assert set(drawn[0.5].tolist()) == set(kept.tolist())


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"length": 16, "prompt_tokens": 16}, "leave nothing"), ({"length": 40, "prompt_tokens": 17}, "prompts have 16")],
)
def test_beginnings_that_are_too_long_are_refused(model, said, expected):
    with pytest.raises(CompressError, match=expected):
        generate(model, prompts(), recipe(**said))


def in_repository(root, **said):
    own = {"from": "base", "prompts": "distillation", "windows": 3, "length": 24, "prompt_tokens": 4} | said
    write_params(root, generate={"own-words": own})


def written(root, monkeypatch, prompts, **said):
    """The text that the stage writes from `prompts` windows of 16 tokens, and these."""
    in_repository(root, **said)
    write_source(root / "source")
    write_base(root / "source", root / "models" / "base")
    begun = write_text(root / "text", [f"text {n}" for n in range(prompts)])
    monkeypatch.chdir(root)
    stage.main("own-words", root / "models" / "base", root / "text", root / "own-words")
    return load_windows(root / "own-words"), begun


def test_the_stage_writes_a_text_as_any_other(tmp_path, monkeypatch):
    own, _ = written(tmp_path, monkeypatch, 2)
    assert own.tokens.shape == (3, 24)
    assert own.domains == ["text 0", "text 1", "text 0"]
    assert json.loads((tmp_path / "own-words" / "corpus.json").read_text("utf8"))["sha256"] == own.digest


def test_the_windows_that_lend_their_beginnings_may_come_along_in_any_order(tmp_path, monkeypatch):
    both, begun = written(tmp_path, monkeypatch, 5, length=16, with_prompts=True)
    rows, theirs = both.tokens.tolist(), begun.tokens.tolist()
    assert len(rows) == 3 + 5
    assert all(row in rows for row in theirs)
    assert [both.domains[rows.index(row)] for row in theirs] == begun.domains
    assert rows[-5:] != theirs
    assert both.mask is None


def test_of_a_text_of_which_not_all_counts_the_model_s_own_words_all_do():
    both = stage._mixed(Windows(TOKENS[:2], ["a", "a"]), Windows(TOKENS[2:], ["b", "b"], mask=TOKENS[2:] > 3), seed=1)
    for row, domain, mask in zip(both.tokens, both.domains, both.mask, strict=True):
        assert mask.tolist() == ([True] * 4 if domain == "a" else (row > 3).tolist())


def test_windows_of_another_length_cannot_come_along(tmp_path, monkeypatch):
    with pytest.raises(CompressError, match=r"generate.own-words.length: 24, .* that come along have 16; write that"):
        written(tmp_path, monkeypatch, 2, with_prompts=True)


def test_evaluation_text_that_comes_along_is_warned_of_as_the_text_that_it_is_from(tmp_path, monkeypatch, capsys):
    both, begun = written(tmp_path, monkeypatch, 4, length=16, with_prompts=True)
    evaluation = Windows(begun.tokens[1:2], ["seen"])
    write_text(tmp_path / "data" / "calibration", ["other"] * 4, seed=1)
    for name, text in {"distillation": begun, "evaluation": evaluation, "own-words": both}.items():
        (tmp_path / "data" / name).mkdir()
        save_windows(text, tmp_path / "data" / name)
    capsys.readouterr()  # the bar of the writing
    overlaps.main(tmp_path / "data", tmp_path / "source" / "tokenizer.json", tmp_path / "overlap.json")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("turbopress: warning: data.distillation: 100.0 % of the evaluation windows share a run")
    assert overlap(both, evaluation).windows == [0]  # in its new order too
    own = tmp_path / "own-words.overlap.json"
    overlaps.main(tmp_path / "data", tmp_path / "source" / "tokenizer.json", own, ["own-words"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("turbopress: warning: generate.own-words: 100.0 % of the evaluation windows share a run")
    assert f"turbopress: {list(overlaps.warnings(tmp_path, ['own-words']))[-1]}" == line
    assert len(list(overlaps.warnings(tmp_path))) == 1  # a text that params.yaml no longer names is not spoken of


def test_what_a_model_writes_is_never_begun_by_the_evaluation_text(tmp_path):
    in_repository(tmp_path, prompts="evaluation")
    with pytest.raises(
        ParamsError, match=r"generate.own-words.prompts: .*'calibration' or 'distillation'.*'evaluation'"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"from": "awq-w4"}, "no 16-bit model is named awq-w4"), ({"from": "x"}, "no 16-bit model is named x")],
)
def test_text_can_only_be_written_by_a_model_in_16_bits(tmp_path, said, expected):
    in_repository(tmp_path, **said)
    with pytest.raises(ParamsError, match=rf"generate.own-words.from: {expected}"):
        load(tmp_path)
