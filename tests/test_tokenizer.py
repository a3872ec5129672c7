"""A written tokenizer loads anywhere without running code, keeps every id, and knows where an answer ends."""

import json
import shutil

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece_models import texts, train
from transformers import AutoTokenizer

from compress.checkpoint.tokenizer import write_tokenizer
from compress.errors import CompressError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKUP = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
RESERVED = [f"[UNUSED_TOKEN_{number}]" for number in range(141, 147)]
CHAT = [{"role": "user", "content": "在吗？  Are you there?"}, {"role": "assistant", "content": "I am."}]
NO_FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


@pytest.fixture(scope="session")
def small_model():
    return train(user_defined_symbols=RESERVED)


def save(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), "utf8")


def load(path):
    return json.loads(path.read_text("utf8"))


def published(folder, model):
    """Writes a folder as InternLM2 is published: SentencePiece model, renamed tokens, classes that are remote code."""
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    ids = {p.piece: index for index, p in enumerate(model.pieces)}
    names = {ids[name]: name for name in ("<unk>", "<s>", "</s>")}
    names |= {ids[old]: new for old, new in zip(RESERVED, MARKUP, strict=True)}
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(index): {"content": name, **NO_FLAGS} for index, name in names.items()},
        "additional_special_tokens": MARKUP[::-1],
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>", "add_bos_token": True},
        "chat_template": TEMPLATE,
    }
    save(folder / "tokenizer_config.json", config)
    save(folder / "config.json", {"model_type": "internlm2", "max_position_embeddings": 2048})
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('remote code ran')")
    return ids


@pytest.fixture
def folders(tmp_path, small_model):
    """A published folder, the empty folder to write to, and the ids of the pieces."""
    ids = published(tmp_path / "source", small_model)
    (tmp_path / "out").mkdir()
    return tmp_path / "source", tmp_path / "out", ids


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change(path, **values):
    """Sets keys of a JSON file; None removes one."""
    merged = {**(load(path) if path.exists() else {}), **values}
    save(path, {key: value for key, value in merged.items() if value is not None})


def test_a_published_folder_becomes_one_that_runs_no_code(folders):
    source, out, ids = folders
    before = contents(source)
    write_tokenizer(source, out)
    assert contents(source) == before
    configurations = {f"{name}_config.json" for name in ("generation", "tokenizer")}
    assert contents(out).keys() == {"chat_template.jinja", "special_tokens_map.json", "tokenizer.json", *configurations}
    config = load(out / "tokenizer_config.json")
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["clean_up_tokenization_spaces"] is False
    assert all(isinstance(merge, str) for merge in load(out / "tokenizer.json")["model"]["merges"])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    assert len(tokenizer) == len(ids)


def test_ids_through_transformers_are_those_of_sentencepiece_after_the_begin_token(folders, small_model):
    source, out, _ = folders
    shutil.copy(source / "config.json", out)
    write_tokenizer(source, out)
    theirs = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    strings = texts([p.piece for p in small_model.pieces if p.type == p.NORMAL], 500)
    expected = [[theirs.bos_id(), *ids] for ids in theirs.encode(strings)]
    assert AutoTokenizer.from_pretrained(out)(strings)["input_ids"] == expected


def test_renamed_tokens_keep_their_ids_and_are_never_spelled(folders):
    source, out, ids = folders
    write_tokenizer(source, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    expected = [ids[name] for name in RESERVED]
    assert tokenizer.convert_tokens_to_ids(MARKUP) == expected
    assert tokenizer("".join(MARKUP), add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.decode(tokenizer("x<|im_end|>")["input_ids"], skip_special_tokens=True) == "x"


def test_the_chat_template_renders_from_either_file(folders):
    source, out, ids = folders
    write_tokenizer(source, out)
    whole = AutoTokenizer.from_pretrained(out).apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert whole.startswith("<s><|im_start|>user\n在吗？  Are you there?<|im_end|>\n<|im_start|>assistant\nI am.")
    (out / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False) == whole
    assert tokenizer(whole, add_special_tokens=False)["input_ids"].count(ids["[UNUSED_TOKEN_145]"]) == 2


def test_a_template_file_is_believed_before_the_configuration(folders):
    source, out, _ = folders
    (source / "chat_template.jinja").write_text("from the file")
    change(source / "tokenizer_config.json", chat_template=[{"name": "tools", "template": "for tools"}])
    write_tokenizer(source, out)
    assert load(out / "tokenizer_config.json")["chat_template"] == "from the file"
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "for tools"


@pytest.mark.parametrize(
    ("declared", "kept"), [(None, ["</s>"]), (["</s>"], ["</s>"]), (["<unk>", "</s>"], ["<unk>", "</s>"])]
)
def test_generation_stops_at_the_chat_end_too(declared, kept, folders):
    source, out, ids = folders
    stops = None if declared is None else [ids[name] for name in declared]
    change(source / "generation_config.json", eos_token_id=stops, temperature=0.8)
    write_tokenizer(source, out)
    generation = load(out / "generation_config.json")
    assert generation["eos_token_id"] == [*[ids[name] for name in kept], ids["[UNUSED_TOKEN_145]"]]
    assert generation["temperature"] == 0.8


def test_a_tokenizer_without_chat_markup_keeps_its_stop_token(folders):
    source, out, ids = folders
    change(source / "tokenizer_config.json", added_tokens_decoder={}, additional_special_tokens=None)
    write_tokenizer(source, out)
    assert load(out / "generation_config.json")["eos_token_id"] == ids["</s>"]


def test_an_older_upload_gives_the_same_tokenizer(folders, tmp_path):
    source, out, ids = folders
    write_tokenizer(source, out)
    (source / "tokenizer_config.json").unlink()
    save(
        source / "special_tokens_map.json",
        {"additional_special_tokens": MARKUP[::-1], "eos_token": {"content": "</s>"}},
    )
    save(source / "added_tokens.json", {new: ids[old] for old, new in zip(RESERVED, MARKUP, strict=True)})
    (tmp_path / "older").mkdir()
    write_tokenizer(source, tmp_path / "older")
    assert load(tmp_path / "older" / "tokenizer.json") == load(out / "tokenizer.json")


def test_writing_twice_changes_no_byte_and_no_id(folders, tmp_path):
    source, out, _ = folders
    write_tokenizer(source, out)
    (tmp_path / "again").mkdir()
    write_tokenizer(out, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)


def test_a_tokenizer_json_saved_by_transformers_keeps_its_ids(folders, tmp_path):
    source, out, _ = folders
    write_tokenizer(source, out)
    AutoTokenizer.from_pretrained(out).save_pretrained(tmp_path / "saved")
    assert isinstance(load(tmp_path / "saved" / "tokenizer.json")["model"]["merges"][0], list)
    (tmp_path / "again").mkdir()
    write_tokenizer(tmp_path / "saved", tmp_path / "again")
    assert contents(tmp_path / "again")["tokenizer.json"] == contents(out)["tokenizer.json"]
    assert load(tmp_path / "again" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("merge", [["a", " "], ["#version", "a"]])
def test_merges_that_a_string_would_garble_stay_pairs(merge, folders):
    source, out, _ = folders
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *merge, "".join(merge)])}
    model = {"type": "BPE", "vocab": vocab, "merges": [merge]}
    save(source / "tokenizer.json", {"added_tokens": [], "model": model})
    save(source / "tokenizer_config.json", {"eos_token": "</s>"})
    write_tokenizer(source, out)
    assert load(out / "tokenizer.json")["model"]["merges"] == [merge]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"additional_special_tokens": ["<|nobody|>"]}, r"'<\|nobody\|>' has no id"),
        ({"added_tokens_decoder": {"9999": {"content": "<far>"}}}, r"as id 9999, the vocabulary gives \d+"),
        ({"added_tokens_decoder": {"5": {"content": "</s>"}}}, "a new name is taken"),
        ({"added_tokens_decoder": {"MERGED": {"content": "<|new|>"}}}, "merges use"),
        (
            {
                "bos_token": None,
                "additional_special_tokens": None,
                "added_tokens_decoder": {"1": {"content": "<begin>"}},
            },
            "a bos_token is to be added",
        ),
    ],
)
def test_a_special_token_without_its_id_is_refused(values, reason, folders, small_model):
    source, out, _ = folders
    merged = next(str(i) for i, p in enumerate(small_model.pieces) if p.piece == "the")
    values = json.loads(json.dumps(values).replace("MERGED", merged))
    change(source / "tokenizer_config.json", **values)
    with pytest.raises(CompressError, match=reason) as refusal:
        write_tokenizer(source, out)
    assert str(refusal.value).startswith(str(source / "tokenizer_config.json"))


def test_a_kept_tokenizer_refuses_to_rename_a_piece_of_its_merges(folders, tmp_path, small_model):
    source, out, _ = folders
    write_tokenizer(source, out)
    merged = next(str(i) for i, p in enumerate(small_model.pieces) if p.piece == "the")
    change(out / "tokenizer_config.json", added_tokens_decoder={merged: {"content": "<|new|>"}})
    with pytest.raises(CompressError, match=r"cannot rename \['the'\]: merges use \['the'\]"):
        write_tokenizer(out, tmp_path)


def test_flags_that_contradict_tokenizer_json_are_refused(folders, tmp_path):
    source, out, _ = folders
    write_tokenizer(source, out)
    change(out / "tokenizer_config.json", add_bos_token=False)
    (tmp_path / "again").mkdir()
    with pytest.raises(CompressError, match=r"add_bos_token is False, but tokenizer.json frames a text with \['<s>'\]"):
        write_tokenizer(out, tmp_path / "again")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CompressError, match=r"neither tokenizer.json nor tokenizer.model"):
        write_tokenizer(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}'),
    ],
)
def test_a_broken_file_is_named(name, content, folders):
    source, out, _ = folders
    (source / name).write_text(content)
    with pytest.raises(CompressError, match=f"{name}: .*(fetch the file|save it) again"):
        write_tokenizer(source, out)
