"""The base's kept hidden states give the same scores as the base itself, and take far less room than logits."""

import shutil

import pytest
import torch
from tiny import CONFIG, windows, write_config, write_internlm2

from compress.checkpoint.load import load_model
from compress.errors import CompressError
from compress.evaluate.replay import BATCH, head_weight, load_reference, save_hidden
from compress.evaluate.tokens import LiveReference, score_tokens
from pipelines.languages import writing

ABOUT = {"base": "b" * 64, "evaluation": "e" * 64}
TOKENS = windows(11, 24)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_internlm2(root / "base")
    write_internlm2(root / "variant", seed=1)
    (root / "hidden").mkdir()
    save_hidden(load_model(root / "base"), TOKENS, root / "hidden", about=ABOUT)
    return root


def test_scores_by_replay_are_those_of_the_direct_computation(made):
    variant, base = load_model(made / "variant"), load_model(made / "base")
    direct = score_tokens(variant, LiveReference(base), TOKENS, batch=3)
    replayed = score_tokens(variant, load_reference(made / "hidden", made / "base", ABOUT, "cpu"), TOKENS, batch=BATCH)
    assert (direct.kl_nats > 0.1).any()
    for name in ("nll_nats", "base_nll_nats", "kl_nats"):
        assert (getattr(direct, name) - getattr(replayed, name)).abs().max() < 1e-5, name
    assert torch.equal(direct.top1, replayed.top1)


def test_the_base_replayed_against_itself_lost_nothing_exactly(made):
    reference = load_reference(made / "hidden", made / "base", ABOUT, "cpu")
    assert torch.equal(
        score_tokens(load_model(made / "base"), reference, TOKENS, batch=BATCH).kl_nats, torch.zeros(11, 24)
    )


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path):
    tensors = write_internlm2(tmp_path / "m")
    assert torch.equal(head_weight(tmp_path / "m"), tensors["output.weight"])
    write_config(tmp_path / "m", CONFIG | {"tie_word_embeddings": True})
    assert torch.equal(head_weight(tmp_path / "m"), tensors["model.tok_embeddings.weight"])


def test_states_of_another_base_or_text_or_none_are_refused(made, tmp_path):
    with pytest.raises(CompressError, match=r"not of .*; run `dvc repro --force reference`"):
        load_reference(made / "hidden", made / "base", ABOUT | {"base": "0" * 64}, "cpu")
    with pytest.raises(CompressError, match=r"no hidden states .*; run `dvc repro reference`"):
        load_reference(tmp_path, made / "base", ABOUT, "cpu")
    shutil.copytree(made / "hidden", tmp_path / "hidden")
    reference = load_reference(tmp_path / "hidden", made / "base", ABOUT, "cpu")
    with pytest.raises(CompressError, match=r"holds states of windows \(8, 24\), not of \(4, 24\)"):
        reference.hidden(0, TOKENS[:4])
    (tmp_path / "hidden" / "hidden-00001.safetensors").write_bytes(b"cut")
    with pytest.raises(CompressError, match=r"hidden-00001.safetensors: no hidden states"):
        reference.hidden(8, TOKENS[8:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The little dog", "latin"),
        ("从前有一只小狗, ok", "chinese"),
        ("これは犬です。漢字", "japanese"),
        ("42 + 1", "none"),
        ("Жил-был пёс", "cyrillic"),
        ("강아지", "korean"),
    ],
)
def test_a_window_s_language_is_told_by_its_letters(text, expected):
    assert writing(text) == expected
