"""The command `turbopress` on a repository of a few files: what it prints, and how it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_repository import REPORTS, WORDS, make_repository
from typer.testing import CliRunner

from compress.evaluate.generation import Sampling, Speaker
from pipelines import cli
from pipelines.params import load
from pipelines.summary import markdown, read_rows
from registry.manifest import verify

ROOT = Path(__file__).parent.parent
PROMPT = "word100 word200 word300"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def repository(made, tmp_path, monkeypatch):
    """A copy of the repository, which is the working folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return tmp_path / "here"


def tensors(folder):
    return {name: t for shard in sorted(folder.glob("*.safetensors")) for name, t in load_file(shard).items()}


# --- check and compare


def test_check_names_the_variants(repository, turbopress):
    assert turbopress("check") == (0, "params.yaml is in order: base, awq-w4, not-made-yet\n", "")


def test_check_refuses_with_a_line_a_problem(turbopress, repository):
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(
        text.replace("seed: 0", "sead: 0", 1).replace("from: base", "from: bass", 1)
    )
    status, out, err = turbopress("check")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "turbopress: params.yaml: data.calibration.sead: unknown key; remove it or correct its spelling",
        "turbopress: params.yaml: quantize.awq-w4.from: no model is named bass; there are base, awq-w4, not-made-yet",
    ]


def test_compare_prints_a_row_for_each_report_as_json(repository, turbopress):
    status, out, err = turbopress("compare", "--json")
    rows = {row["variant"]: row for row in json.loads(out)}
    assert (status, err) == (0, "")
    assert list(rows) == ["base", "awq-w4"]
    assert rows["awq-w4"]["from"] == "base"
    assert all(rows[key].items() >= metrics.items() for key, metrics in REPORTS.items())


def test_compare_prints_the_summary_s_markdown(turbopress, repository):
    expected = markdown(read_rows(load(repository), repository / "reports"))
    assert turbopress("compare", "--md") == (0, expected, "")
    assert "| awq-w4 | base | 1.50 M | 0.90 MB | 16.00 | 12.500 | +0.500 | 0.0400 | 90.0 % |" in expected


def test_compare_prints_a_table_with_whole_cells(repository, turbopress):
    status, out, _ = turbopress("compare")
    assert status == 0
    assert all(word in out for word in ("awq-w4", "0.90 MB", "+0.500", "90.0 %"))
    assert "…" not in out


def test_compare_warns_of_text_that_was_seen_before(turbopress, repository):
    about = {"share": 0.25, "tokens_share": 0.1, "by_domain": {"law": 0.25}, "windows": [3]}
    found = {"run_tokens": 13, "calibration": about, "distillation": about | {"share": 0.0}}
    (repository / "reports" / "overlap.json").write_text(json.dumps(found))
    status, out, err = turbopress("compare", "--json")
    assert (status, len(json.loads(out))) == (0, 2)
    (line,) = err.splitlines()
    assert line.startswith("turbopress: warning: data.calibration: 25.0 % of the evaluation windows share a run of 13")


def test_compare_without_reports_says_what_to_run(turbopress, repository):
    shutil.rmtree(repository / "reports")
    assert turbopress("compare") == (1, "", f"turbopress: {repository}/reports: no reports yet; run `dvc repro`\n")


def test_outside_a_repository_is_one_line(repository, turbopress, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = turbopress("compare")
    assert (status, out) == (1, "")
    assert err == f"turbopress: {tmp_path}: no params.yaml here or above; run this inside a turbopress repository\n"


# --- verify and convert


def test_verify_names_the_digest(turbopress, repository):
    digest = verify(repository / "models" / "base").digest
    status, out, err = turbopress("verify", "models/base", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["digest"] == digest
    assert turbopress("verify", "models/base")[1].endswith(f"unaltered, {digest}\n")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "command", [("verify", "models/base"), ("convert", "models/base", "--to", "out"), ("chat", "base", PROMPT)], ids=str
)
def test_a_tampered_artifact_is_refused(turbopress, repository, command):
    shard = sorted((repository / "models" / "base").glob("*.safetensors"))[1]
    flip_a_byte(shard)
    status, out, err = turbopress(*command)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert f"models/base: {shard.name} was altered" in err
    assert not (repository / "out").exists()


@pytest.mark.parametrize("key", ["base", "awq-w4"])
def test_convert_to_internlm2_and_back_gives_the_same_tensors(turbopress, repository, key):
    assert turbopress("convert", f"models/{key}", "--to", "fused")[0] == 0
    assert turbopress("convert", "fused", "--to", "back", "--layout", "llama")[0] == 0
    before, fused, after = (tensors(repository / name) for name in (f"models/{key}", "fused", "back"))
    assert any("attention.wqkv" in name for name in fused)
    assert after.keys() == before.keys()
    assert all(after[name].numpy().tobytes() == t.numpy().tobytes() for name, t in before.items())
    assert verify(repository / "fused").kind == verify(repository / "models" / key).kind


def test_convert_refuses_a_layout_that_is_none(turbopress, repository):
    status, _, err = turbopress("convert", "models/base", "--to", "out", "--layout", "gguf")
    assert (status, err) == (1, "turbopress: --layout: gguf; choose llama or internlm2\n")
    assert not (repository / "out").exists()


def test_convert_writes_over_nothing(turbopress, repository):
    (repository / "out").mkdir()
    (repository / "out" / "mine").touch()
    status, _, err = turbopress("convert", "models/base", "--to", "out")
    assert status == 1
    assert err.startswith("turbopress: out: exists already")
    assert [path.name for path in (repository / "out").iterdir()] == ["mine"]


# --- chat


def answer(turbopress, key, *options):
    status, out, err = turbopress("chat", key, PROMPT, "--json", "--max-tokens", "12", *options)
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert said["prompt"] == PROMPT
    assert set(said["text"].split()) <= set(WORDS)
    return said["text"]


@pytest.mark.parametrize("key", ["base", "awq-w4", "models/base"])
def test_chat_answers_once_as_json(repository, turbopress, key):
    assert answer(turbopress, key, "--raw")


def test_chat_gives_the_same_answer_for_the_same_seed_and_another_for_another(repository, turbopress):
    hot = ("--temperature", "1.5")
    first, again, other = (answer(turbopress, "base", *hot, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other


def test_chat_at_temperature_0_depends_on_no_seed(repository, turbopress):
    first, other = (answer(turbopress, "base", "--temperature", "0", "--seed", seed) for seed in ("1", "2"))
    assert first == other


def test_chat_prints_the_answer_as_plain_text(repository, turbopress):
    told = answer(turbopress, "base", "--temperature", "0")
    options = ("--temperature", "0", "--max-tokens", "12")
    assert turbopress("chat", "base", PROMPT, *options) == (0, f"{told}\n", "")


@pytest.mark.parametrize(
    ("prompt", "option", "said"),
    [("", "--raw", "prompt: holds no token"), (PROMPT, "--no-raw", "chat: this model has no")],
)
def test_what_cannot_be_answered_is_one_line(turbopress, repository, prompt, option, said):
    config = repository / "source" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    status, out, err = turbopress("chat", "./source", prompt, option)
    assert (status, out) == (1, "")
    assert err.startswith(f"turbopress: {said}")


def test_a_failure_while_speaking_reaches_the_listener(repository, monkeypatch):
    speaker = Speaker.load(repository / "models" / "base", "cpu")
    monkeypatch.setattr(speaker.model, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(speaker.answer(PROMPT, Sampling(4, 0.0, 1.0, 0), marked=False))


def test_an_unknown_model_is_one_line(turbopress, repository):
    status, out, err = turbopress("chat", "awq-w5", PROMPT)
    assert (status, out) == (1, "")
    assert err.startswith(f"turbopress: awq-w5: no model in awq-w5 or {repository}/models/awq-w5; run `dvc repro`")
    assert len(err.splitlines()) == 1


# --- the program


def test_help_needs_no_repository_and_names_every_command(tmp_path):
    command = [sys.executable, "-m", "pipelines.cli", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert all(name in made.stdout for name in ("check", "compare", "verify", "export", "convert", "chat", "explain"))
    assert CliRunner().invoke(cli.app, ["chat", "--help"]).exit_code == 0
