"""InternLM2's real tokenizer, rebuilt as a SentencePiece model, converts back to the published ids.

No package registry holds its tokenizer.model, but npm holds the tokenizer.json that was made from it: the vocabulary
by id, and merges whose order is the order of the scores. That is all a SentencePiece BPE model consists of.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as pb
from sentencepiece_models import texts
from tokenizers import Tokenizer

from compress.checkpoint.tokenizer import write_tokenizer

SCRIPT = Path(__file__).parents[2] / "shared" / "assets" / "get_internlm2_tokenizer.py"
FIRST_BYTE, FIRST_PIECE, FIRST_MARKUP = 3, 259, 92538
NUL = "\0"  # piece 354; SentencePiece 0.2.3 spells it as a byte since, see sentencepiece_bpe.py


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The folder with InternLM2's published tokenizer.json."""
    if not SCRIPT.is_file():
        pytest.skip("the folder shared/ with get_internlm2_tokenizer.py is not beside the checkout")
    if shutil.which("npm") is None:
        pytest.skip("npm, which fetches InternLM2's tokenizer, is not installed")
    folder = tmp_path_factory.mktemp("internlm2")
    made = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"InternLM2's tokenizer could not be fetched: {made.stderr.strip().splitlines()[-1]}")
    return folder


def rebuilt(published, reserved_kind):
    """Returns the SentencePiece model whose pieces, ids and order of scores are those of the tokenizer.json."""
    names = {index: name for name, index in published["model"]["vocab"].items()}
    ranks = {}
    for left, right in published["model"]["merges"]:
        ranks.setdefault(left + right, len(ranks))
    model = pb.ModelProto()
    kinds = model.SentencePiece
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = model.trainer_spec.BPE, True
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    for index in range(len(names)):
        name = names[index] if index < FIRST_MARKUP else f"[UNUSED_TOKEN_{index - FIRST_MARKUP + 141}]"
        score = -ranks.get(name, len(ranks) + index)
        if index < FIRST_PIECE:
            kind = kinds.BYTE if index >= FIRST_BYTE else kinds.CONTROL if index else kinds.UNKNOWN
        else:
            kind = reserved_kind if name.startswith("[UNUSED_TOKEN_") else kinds.NORMAL
        model.pieces.add(piece=name, score=score, type=kind)
    return model


def strings_of(vocabulary):
    """Returns code and English from Python's library, shuffled vocabulary (half Chinese), runs and odd strings."""
    library = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    prose = [part for path in library for part in path.read_text("utf8").split("\n\n")]
    runs = [
        left + char * size + right
        for char in " \n\t=-_*aA哈—…0"
        for size in range(1, 100)
        for left, right in (("", "the"), ("x", ""))
    ]
    return random.Random(0).sample(prose, 4000) + runs + texts(vocabulary, 5000)


def strings_without(strings, taboo):
    return [text for text in strings if not any(word in text for word in taboo)]


@pytest.mark.parametrize("kind", ["NORMAL", "USER_DEFINED"])
def test_the_rebuilt_model_converts_to_the_published_ids_and_to_sentencepiece_s(kind, real, tmp_path):
    published = json.loads((real / "tokenizer.json").read_text("utf8"))
    model = rebuilt(published, pb.ModelProto.SentencePiece.Type.Value(kind))
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    declared = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in published["added_tokens"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}))
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path, tmp_path / "out")
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    strings = strings_without(strings_of([p.piece for p in model.pieces[FIRST_PIECE:92397]]), [NUL])
    ids = [encoding.ids for encoding in ours.encode_batch(strings)]
    theirs = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ids == [e.ids for e in Tokenizer.from_file(str(real / "tokenizer.json")).encode_batch(strings)]
    assert ids == [[1, *encoded] for encoded in theirs.encode(strings)]
    assert ours.decode_batch(ids) == [text.replace("▁", " ") for text in strings]


def test_the_published_tokenizer_json_keeps_its_ids_and_learns_to_stop(real, tmp_path):
    write_tokenizer(real, tmp_path)
    kept, before = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path, real))
    strings = [*strings_of(["▁the", "我们"])[:2000], "<|im_start|>user\n你好<|im_end|>", NUL]
    assert [e.ids for e in kept.encode_batch(strings)] == [e.ids for e in before.encode_batch(strings)]
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 92542]
