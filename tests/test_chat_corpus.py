"""Conversations become windows in the model's own markup, and where only answers count, only they do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from compress.checkpoint.tokenizer import write_tokenizer
from compress.corpus import ChatTemplate, CorpusRecipe, load_windows, make_windows, read_documents, save_windows
from compress.errors import CompressError

BASE = Path(__file__).parents[1] / "examples" / "demo" / "base"
TALK = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "What does a cow say?"},
    {"role": "assistant", "content": "A cow says moo."},
    {"role": "user", "content": "And a cat?"},
    {"role": "assistant", "content": "你好, it says meow."},
]
FORGETFUL = (  # leaves the reasoning of earlier answers out, as templates of reasoning models do
    "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] if not loop.last else m.content }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The demo base's tokenizer, as stage `fetch` writes it."""
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(BASE, folder)
    return folder


@pytest.fixture(scope="module")
def template(model):
    return ChatTemplate.read(model)


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def recipe(source="chat.jsonl", windows=1, length=16, **more):
    return CorpusRecipe(source=source, windows=windows, length=length, **more)


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf8")
    return path


# --- what is read


def test_a_conversation_has_the_ids_that_transformers_gives_it(tmp_path, model, template, tokenizer):
    write(tmp_path / "chat.jsonl", *[{"messages": TALK}] * 3)
    expected = AutoTokenizer.from_pretrained(model).apply_chat_template(TALK, tokenize=True, return_dict=False) * 3
    every = len(expected) // 16
    windows = make_windows(read_documents(recipe(), tmp_path, template), tokenizer, recipe(windows=every))
    assert windows.mask is None
    assert windows.tokens.flatten().tolist() == expected[: every * 16]


def test_jsonl_and_parquet_hold_the_same_conversations(tmp_path, template):
    rows = [{"text": None, "messages": TALK, "domain": "animals"}, {"text": "plain", "domain": None, "messages": None}]
    write(tmp_path / "a.jsonl", *rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = (read_documents(recipe(f"a.{kind}"), tmp_path, template) for kind in ("jsonl", "parquet"))
    assert first == second
    assert [(d.domain, d.marked) for d in first] == [("animals", True), ("text", False)]


def counted_text(windows, tokenizer):
    """What the counted tokens say, a piece for each run of them."""
    ids, counts = windows.tokens.flatten(), windows.mask.flatten()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], counts, [False]])))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=False).strip() for a, b in runs]


def test_of_a_conversation_only_the_answers_count_with_their_end_marks(tmp_path, template, tokenizer):
    write(tmp_path / "chat.jsonl", *[{"messages": TALK}] * 20)
    answers = recipe(windows=1, length=256, counts="answers")
    documents = read_documents(answers, tmp_path, template)
    windows = make_windows(documents, tokenizer, answers)
    said = counted_text(windows, tokenizer)
    assert set(said[1:-1]) == {"A cow says moo.<|im_end|>", "你好, it says meow.<|im_end|>"}  # the ends may be cut
    assert 0.2 < windows.mask.mean() < 0.6


def test_the_answers_are_where_a_template_that_marks_them_says_they_are(template):
    """Published templates with generation tags are the check: both ways must find the same characters."""
    from transformers.utils.chat_template_utils import render_jinja_template

    marked = (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    _, (expected,) = render_jinja_template(
        [TALK], chat_template=marked, return_assistant_tokens_mask=True, **template.tokens
    )
    assert list(template.rendered(TALK, "here", spans=True)[1]) == [tuple(span) for span in expected]


def test_windows_in_which_nothing_counts_are_left_out(tmp_path, template, tokenizer):
    question = {"role": "user", "content": "Why? " * 200}
    write(tmp_path / "chat.jsonl", {"messages": [question, {"role": "assistant", "content": "Because."}, question]})
    answers = recipe(length=32, counts="answers")
    windows = make_windows(read_documents(answers, tmp_path, template), tokenizer, answers)
    assert counted_text(windows, tokenizer) == ["Because.<|im_end|>"]
    with pytest.raises(CompressError, match=r"chat\.jsonl: holds 1 windows of 32 tokens with an answer, 2 asked for"):
        make_windows(
            read_documents(answers, tmp_path, template), tokenizer, recipe(windows=2, length=32, counts="answers")
        )


# --- the mask is kept


@pytest.fixture
def windows(tmp_path, template, tokenizer):
    write(tmp_path / "chat.jsonl", *[{"messages": TALK}] * 20)
    answers = recipe(windows=3, length=64, counts="answers")
    return make_windows(read_documents(answers, tmp_path, template), tokenizer, answers)


def test_a_saved_mask_comes_back_and_is_part_of_the_digest(tmp_path, windows):
    save_windows(windows, tmp_path)
    back = load_windows(tmp_path)
    assert np.array_equal(back.mask, windows.mask)
    assert np.array_equal(back.documents, windows.documents)
    assert back.digest == windows.digest != replace(windows, mask=None).digest
    assert json.loads((tmp_path / "corpus.json").read_text())["counted_tokens"] == windows.mask.sum()
    changed = windows.mask.copy()
    changed[1, 5] = not changed[1, 5]
    assert replace(windows, mask=changed).digest != windows.digest


def test_a_position_predicts_the_token_after_it(windows):
    assert np.array_equal(windows.predicts[:, :-1], windows.mask[:, 1:])
    assert np.array_equal(windows.predicts[:, -1], windows.mask[:, -1])
    assert replace(windows, mask=None).predicts is None


# --- what is refused


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"conversation": TALK},
            r'expected \{"text": "…"\} or \{"messages": .* found .*conversation.*; correct or remove',
        ),
        ({"messages": "hello"}, r"messages is '\"hello\"'; give a list of \{role, content\}"),
        ({"messages": []}, r"messages is '\[\]'; give a list"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] is .*; give it a role and a content, both text"),
        ({"messages": [TALK[0], "hi"]}, r"messages\[1\] is .*hi.*; give it a role and a content"),
        (
            {"messages": [TALK[0], {"role": "robot", "content": "x"}]},
            r"messages\[1\] has the role 'robot'; known are system, user, assistant",
        ),
    ],
)
def test_a_bad_row_is_refused_in_one_line_with_its_place(tmp_path, template, row, said):
    path = write(tmp_path / "chat.jsonl", {"messages": TALK}, row)
    with pytest.raises(CompressError, match=said) as refused:
        read_documents(recipe(), tmp_path, template)
    assert str(refused.value).startswith(f"{path}:2: ")
    assert "\n" not in str(refused.value)


def test_messages_without_a_template_are_refused(tmp_path, model):
    config = {
        k: v for k, v in json.loads((model / "tokenizer_config.json").read_text()).items() if k != "chat_template"
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.read(tmp_path) is None
    write(tmp_path / "chat.jsonl", {"messages": TALK})
    with pytest.raises(CompressError, match=r"chat\.jsonl:1: has messages, but this model has no chat template; give"):
        read_documents(recipe(), tmp_path, ChatTemplate.read(tmp_path))


def test_texts_of_which_only_answers_are_to_count_are_refused(tmp_path, template):
    write(tmp_path / "chat.jsonl", {"text": "plain"})
    with pytest.raises(
        CompressError, match=r"chat\.jsonl:1: has no messages, so no answer would count; write counts: a"
    ):
        read_documents(recipe(counts="answers"), tmp_path, template)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", r"refuses it \(roles must alternate\); correct or remove"),
        ("{% for m in messages %}{{ m.content", r"the chat template refuses it \(.+\); correct or remove"),
    ],
)
def test_what_the_template_refuses_is_refused_with_the_row_s_place(tmp_path, text, said):
    write(tmp_path / "chat.jsonl", {"messages": TALK})
    with pytest.raises(CompressError, match=rf"chat\.jsonl:1: .*{said}"):
        read_documents(recipe(), tmp_path, ChatTemplate(text, {}))


def test_a_template_that_rewrites_what_came_before_has_no_answers_to_find(tmp_path):
    talk = [dict(m, content=f"<think>so</think>{m['content']}") for m in TALK]
    write(tmp_path / "chat.jsonl", {"messages": talk})
    forgetful = ChatTemplate(FORGETFUL, {})
    assert read_documents(recipe(), tmp_path, forgetful)[0].text.count("<think>") == 1
    with pytest.raises(
        CompressError, match=r"chat\.jsonl:1: the chat template writes .*message 2 .*; write counts: all"
    ):
        read_documents(recipe(counts="answers"), tmp_path, forgetful)
