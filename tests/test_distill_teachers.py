"""A teacher beside the student and what it once said give the same loss; what no cache can give is refused."""

import json
from shutil import rmtree

import pytest
import torch
import yaml
from full_disk import full_disk
from test_distill_loop import losses, models, recipe, texts, uneven  # noqa: F401 - a fixture
from tiny import CONFIG
from tiny_repository import write_base, write_params, write_source, write_text

from compress.checkpoint.load import load_model
from compress.distill import cache, fused, learner, teachers
from compress.distill.cache import cached, fill
from compress.distill.train import distill_
from compress.distill.vocabulary import require_same_tokenizer
from compress.errors import CompressError
from pipelines import distill
from registry.errors import RegistryError
from registry.manifest import verify

TOP = {"kind": "top_k_kl", "k": 9}


def from_cache(models, folder, said):  # noqa: F811
    student, teacher = models()
    fill(folder, teacher, texts(), said)
    kept = cached(folder, teacher.lm_head.weight.detach(), said.cache)
    return losses(distill_(student, kept, texts(), said, counted=uneven()))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("loss", [{"kind": "forward_kl"}, [{"kind": "reverse_kl"}, {"kind": "cross_entropy"}]])
def test_kept_hidden_states_give_the_losses_of_the_teacher_beside(tmp_path, models, precision, loss):  # noqa: F811
    said = {"precision": precision, "loss": loss, "steps": 3}
    beside = losses(distill_(*models(), texts(), recipe(**said), counted=uneven()))
    kept = from_cache(models, tmp_path / "cache", recipe(**said, cache="hidden"))
    assert kept == pytest.approx(beside, rel=1e-5 if precision == "float32" else 2e-3)
    assert beside[0] > 0.1


@pytest.mark.parametrize("top_k", [9, 30])
def test_kept_likeliest_entries_give_the_top_k_loss_of_the_teacher_beside(tmp_path, models, top_k):  # noqa: F811
    beside = losses(distill_(*models(), texts(), recipe(loss=TOP, steps=3), counted=uneven()))
    kept = from_cache(models, tmp_path / "cache", recipe(loss=TOP, cache={"top_k": top_k}, steps=3))
    assert kept == pytest.approx(beside, rel=1e-5)


def test_a_cache_is_a_fraction_of_the_logits(tmp_path, models):  # noqa: F811
    said = recipe(precision="bf16", cache="hidden")
    fill(tmp_path / "cache", models()[1], texts(), said)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert size < texts().numel() * CONFIG["vocab_size"] * 2 / 2


def test_a_full_disk_loses_nothing_that_is_cached(tmp_path, models):  # noqa: F811
    said, teacher, folder = recipe(cache="hidden"), models()[1], tmp_path / "cache"
    with full_disk() as fill_up:

        def full_after_two(items, what):
            for number, item in enumerate(items):
                if number == 2:
                    fill_up(512)
                yield item

        with pytest.raises(CompressError, match=r"window-000016.safetensors: not written .* stay cached$") as error:
            fill(folder, teacher, texts(), said, full_after_two)
    assert "\n" not in str(error.value)
    there = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(there) == 16
    fill(folder, teacher, texts(), said)
    assert len(list(folder.iterdir())) == 24
    assert {path: path.stat().st_mtime_ns for path in there} == there
    whole = recipe(cache="hidden", steps=3)
    kept = cached(folder, teacher.lm_head.weight.detach(), "hidden")
    found = losses(distill_(models()[0], kept, texts(), whole))
    assert found == pytest.approx(losses(distill_(*models(), texts(), recipe(steps=3))), rel=1e-5)


def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 MiB free.\nMore.")


PLACES = {
    "teacher": (teachers, "run"),
    "loss": (learner, "fused_loss"),
    "backward": (fused._Pass, "_add"),
    "optimizer": (torch.optim.AdamW, "step"),
}


@pytest.mark.parametrize("place", PLACES)
def test_wherever_memory_runs_out_what_helps_is_named_the_most_useful_first(monkeypatch, models, place):  # noqa: F811
    monkeypatch.setattr(*PLACES[place], full)
    with pytest.raises(
        CompressError,
        match=r"^train: the device's memory is full \(CUDA out of memory. Tried to allocate 2.00 GiB\); "
        r"write cache: hidden .*, or accumulate: 2 .*, or checkpointing: true",
    ) as error:
        distill_(*models(), texts(), recipe())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"loss": {"kind": "hidden"}}, r"full \(.*\); write accumulate: 2 .*, or checkpointing: true"),
        ({"accumulate": 2, "checkpointing": True}, r"; write cache: hidden .*, or accumulate: 4 \(fewer windows"),
        ({"loss": {"kind": "hidden"}, "accumulate": 4, "checkpointing": True}, "nothing in the recipe is left to save"),
    ],
)
def test_what_is_done_already_or_cannot_be_is_not_advised(monkeypatch, models, said, expected):  # noqa: F811
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(CompressError, match=expected):
        distill_(*models(), texts(), recipe(**said))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"cache": {"top_k": 9}}, "cache: top_k: 9 serves cross_entropy and top_k_kl .* use cache: hidden for forward"),
        ({"cache": {"top_k": 8}, "loss": TOP}, "with k of at most 8 at temperature 1"),
        ({"cache": {"top_k": 9}, "loss": TOP | {"temperature": 2.0}}, "at temperature 1"),
        ({"cache": "hidden", "loss": {"kind": "hidden"}}, "cache: hidden needs the teacher's layers"),
        ({"loss": []}, "at least 1 item"),
        ({"loss": {"kind": "backward_kl"}}, "does not match any of the expected tags"),
        ({"compile": True, "loss": {"kind": "attention_relation"}}, "compile: attention_relation looks inside"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(said, expected):
    with pytest.raises(ValueError, match=expected):
        recipe(**said)


# --- tokenizers


def tokenizer(folder, change=lambda content: None):
    write_source(folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf8")
    return folder


def exchange(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["word7"], vocabulary["word8"] = vocabulary["word8"], vocabulary["word7"]


def test_the_same_tokens_in_another_file_are_the_same_tokenizer(tmp_path):
    require_same_tokenizer(tokenizer(tmp_path / "a"), tokenizer(tmp_path / "b", lambda content: content.pop("version")))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (exchange, "token 7 is 'word8', and 'word7' in .*a/tokenizer.json; distil from a teacher of the student's own"),
        (lambda content: content["model"]["vocab"].pop("word9"), "token 9 is None, and 'word9' in"),
        (lambda content: content.update(pre_tokenizer=None), "its pre_tokenizer is not that of .*become other tokens"),
        (lambda content: content.update(model=None), "no tokenizer"),
    ],
)
def test_other_tokens_are_refused_with_the_first(tmp_path, change, expected):
    with pytest.raises(CompressError, match=expected):
        require_same_tokenizer(tokenizer(tmp_path / "a"), tokenizer(tmp_path / "b", change))


# --- the stage


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A base, another model of its family, a text, and students of the one taught by the other."""
    said = {"from": "base", "teacher": "other", "data": "distillation", "steps": 3, "batch": 2, "warmup_steps": 1}
    said |= {"learning_rate": 0.001, "save_every": 1}
    students = {"plain": said, "cached": said | {"cache": "hidden"}}
    other = {"from": "base", "method": "depth", "remove_layers": 1}
    write_params(tmp_path, prune={"other": other}, distill=students)
    for name, seed in (("base", 0), ("other", 1)):
        write_source(tmp_path / name, seed=seed)
        write_base(tmp_path / name, tmp_path / "models" / name)
    write_text(tmp_path / "text", ["text"] * 6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return tmp_path


def test_another_learning_rate_reads_what_the_teacher_has_said_before(repository, monkeypatch):
    folders = [repository / place for place in ("models/base", "models/other", "text", "models/cached", "t/cached")]
    distill.main("cached", *folders)
    (kept,) = (repository / "models").glob(".cached.*")
    rmtree(folders[3])
    rmtree(folders[4])
    params = repository / "params.yaml"
    changed = yaml.safe_load(params.read_text("utf8"))
    changed["distill"]["cached"]["learning_rate"] = 0.002
    params.write_text(yaml.safe_dump(changed), "utf8")
    asked = []
    monkeypatch.setattr(cache, "run", lambda *said, **_: asked.append(said))
    distill.main("cached", *folders)
    assert not asked
    assert list((repository / "models").glob(".cached.*")) == [kept]


def test_a_place_that_is_taken_is_refused_before_anything_is_trained(repository, monkeypatch):
    folders = [repository / place for place in ("models/base", "models/other", "text", "models/other", "t/plain")]
    monkeypatch.setattr(distill, "distill_", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(RegistryError, match="other: exists already"):
        distill.main("plain", *folders)


def test_the_stage_trains_alike_beside_the_teacher_and_from_its_cache(repository, capsys):
    found = {}
    for key in ("plain", "cached"):
        folders = [repository / place for place in ("models/base", "models/other", "text", f"models/{key}", f"t/{key}")]
        distill.main(key, *folders)
        found[key] = [row["loss_nats"] for row in json.loads((folders[-1] / "trace.json").read_text("utf8"))]
        assert verify(folders[3]).data.keys() == {"distillation"}
    assert found["cached"] == pytest.approx(found["plain"], rel=1e-5)
    (kept,) = (repository / "models").glob(".cached.*")  # nothing but what the teacher said, for another training
    assert sorted(path.name for path in (repository / "models").iterdir()) == [
        kept.name, "base", "cached", "other", "plain"
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "tokens/s" in said
    assert "losses are not shown in MLflow" in said  # there is no store here, and nobody minds
    weight = load_model(repository / "models" / "cached").model.norm.weight
    assert not torch.equal(weight, load_model(repository / "models" / "base").model.norm.weight)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("plain", "train: the device's memory is full .*; write cache"),
        ("cached", "teacher: does not fit .* alone .*bf16"),
    ],
)
def test_a_teacher_without_room_is_refused_by_the_stage_and_leaves_nothing(repository, monkeypatch, key, message):
    monkeypatch.setattr(teachers if key == "plain" else cache, "run", full)
    folders = [repository / place for place in ("models/base", "models/other", "text", f"models/{key}", f"t/{key}")]
    with pytest.raises(CompressError, match=message):
        distill.main(key, *folders)
    assert not folders[3].exists()
