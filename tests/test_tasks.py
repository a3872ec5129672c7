"""lm-eval's own program measures a stored model on a task of local files, and finds what the logits say."""

import importlib.util
import json

import pytest
import torch
from tiny_repository import WORDS, make_repository

from compress.evaluate.generation import Speaker

TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'turbopress[tasks]'"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("repository"))
    (root / "tasks").mkdir()
    rows = [
        {
            "text": " ".join(WORDS[20 + n : 24 + n]),
            "choices": [WORDS[40 + 3 * n + k] for k in range(3)],
            "answer": n % 3,
        }
        for n in range(12)
    ]
    data = root / "tasks" / "words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks" / "words.yaml").write_text(TASK.format(data=data))
    return root, rows


@pytest.fixture
def working(here, monkeypatch):
    """The repository as the working folder."""
    monkeypatch.chdir(here[0])
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")


def accuracy(folder, rows):
    """By hand: the choice whose token is likeliest after the text."""
    speaker, right = Speaker.load(folder, "cpu"), 0
    for row in rows:
        ids = speaker.tokenizer(row["text"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = speaker.model(ids).logits[0, -1]
        choices = [speaker.tokenizer(choice, add_special_tokens=False)["input_ids"][-1] for choice in row["choices"]]
        right += int(logits[choices].argmax()) == row["answer"]
    return right / len(rows)


@needs_lm_eval
def test_a_task_of_local_files_is_measured_as_the_logits_say(working, turbopress, here):
    root, rows = here
    status, out, err = turbopress("tasks", "base", "--tasks", root / "tasks", "--task", "words", "--json")
    assert status == 0, err
    found = json.loads(out)["base"]["words"]
    assert found["documents"] == 12
    assert found["acc"] == pytest.approx(accuracy(root / "models" / "base", rows))
    assert "words" in turbopress("tasks", "base", "--tasks", root / "tasks", "--task", "words", "--limit", 2)[1]


@needs_lm_eval
def test_an_unknown_task_is_one_line(working, turbopress, here):
    status, out, err = turbopress("tasks", "base", "--tasks", here[0] / "tasks", "--task", "arc_easy")
    assert (status, out) == (1, "")
    assert err.endswith("has no task arc_easy (it has: words)\n")
    assert len(err.splitlines()) == 1


def test_a_folder_and_a_variant_that_are_not_there_are_one_line(working, turbopress, here):
    status, _, err = turbopress("tasks", "base", "--tasks", "/nowhere", "--task", "words")
    assert (status, err) == (1, "turbopress: --tasks /nowhere: no such folder; give one with lm-eval's YAML files\n")
    status, _, err = turbopress("tasks", "nobody", "--tasks", here[0] / "tasks", "--task", "words")
    assert status == 1
    assert "nobody: no model in" in err
