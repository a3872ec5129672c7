"""A device whose memory is full ends each stage in one line: where, what was asked of it, and what helps."""

import pytest
import torch
from test_distill_loop import models, recipe, texts  # noqa: F401 - a fixture
from test_distill_stage import folders, repository  # noqa: F401 - a fixture
from tiny_repository import make_base

from compress.distill import cache, fused, learner, teachers
from compress.distill.train import distill_
from compress.errors import CompressError
from compress.room import room
from pipelines import distill, generate, prune

TOP = {"kind": "top_k_kl", "k": 9}


def full(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 MiB free.\nMore.")


def test_a_device_without_room_for_cuda_itself_is_full_too():
    message = r"^here: the device's memory is full \(CUDA error: out of memory\); wait$"
    with pytest.raises(CompressError, match=message), room("here", "wait"):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere")


def test_another_fault_is_not_taken_for_a_full_device():
    with pytest.raises(RuntimeError, match=r"^sizes do not match$"), room("here", "wait"):
        raise RuntimeError("sizes do not match")


# --- training

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
    ("loss", "top_k"),
    [
        ({"kind": "forward_kl"}, None),
        (TOP, 9),
        ([TOP, {"kind": "cross_entropy"}], 9),
        ([TOP, TOP | {"k": 30}], 30),
        (TOP | {"temperature": 2.0}, None),
        ([TOP, {"kind": "reverse_kl"}], None),
    ],
)
def test_a_cache_of_the_likeliest_is_named_where_the_recipe_would_take_it(monkeypatch, models, loss, top_k):  # noqa: F811
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(CompressError) as error:
        distill_(*models(), texts(), recipe(loss=loss))
    told = "" if top_k is None else f"; {{top_k: {top_k}}} needs no head of its own either"
    assert f"write cache: hidden (the teacher runs first and alone{told}), or" in str(error.value)
    if top_k is not None:
        recipe(loss=loss, cache={"top_k": top_k})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("plain", "train: the device's memory is full .*; write cache"),
        ("cached", "teacher: does not fit .* alone .*bf16"),
    ],
)
def test_a_teacher_without_room_is_refused_by_the_stage_and_leaves_nothing(repository, monkeypatch, key, message):  # noqa: F811
    monkeypatch.setattr(teachers if key == "plain" else cache, "run", full)
    given = folders(repository, key)
    with pytest.raises(CompressError, match=message):
        distill.main(key, *given)
    assert not given[3].exists()


@pytest.mark.parametrize(("key", "helps"), [("plain", "write cache: hidden"), ("cached", "write accumulate: 2")])
def test_a_student_without_room_is_refused_by_the_stage_and_leaves_nothing(repository, monkeypatch, key, helps):  # noqa: F811
    load_model = distill.load_model
    monkeypatch.setattr(
        distill, "load_model", lambda f, *a, **k: full() if f.name == "base" else load_model(f, *a, **k)
    )
    given = folders(repository, key)
    with pytest.raises(CompressError, match=rf"^train: the device's memory is full \(.* 2.00 GiB\); {helps}") as error:
        distill.main(key, *given)
    assert "\n" not in str(error.value)
    assert not given[3].exists()


# --- other stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base and a text, with something to write and something to prune."""
    own = {"from": "base", "prompts": "distillation", "windows": 3, "length": 24, "prompt_tokens": 4}
    said = {"generate": {"many": own | {"batch": 8}, "one": own | {"batch": 1}}}
    said["prune"] = {"shallow": {"from": "base", "method": "depth", "remove_layers": 1}}
    return make_base(tmp_path_factory.mktemp("room"), sections=said)


@pytest.fixture
def started(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return made


@pytest.mark.parametrize("place", ["load_model", "generate"])
@pytest.mark.parametrize(
    ("key", "helps"), [("many", r"write batch: 1 \(.*\), or write precision: bf16"), ("one", "bf16")]
)
def test_writing_text_without_room_is_told_in_a_line(started, monkeypatch, place, key, helps):
    monkeypatch.setattr(generate, place, full)
    message = rf"^generate\.{key}: the device's memory is full \(.* 2\.00 GiB\); .*{helps} .*, or set TURBOPRESS_DEVICE"
    with pytest.raises(CompressError, match=message) as error:
        generate.main(key, started / "models" / "base", started / "data", started / "own")
    assert "\n" not in str(error.value)
    assert ("write batch" in str(error.value)) == (key == "many")
    assert not (started / "own").exists()


@pytest.mark.parametrize("place", ["decide", "write"])
def test_pruning_without_room_is_told_in_a_line_and_leaves_nothing(started, monkeypatch, place):
    monkeypatch.setattr(prune, place, full)
    message = (
        r"^prune\.shallow: the device's memory is full \(.* 2\.00 GiB\); set TURBOPRESS_DEVICE=cpu, or .* calibration"
    )
    with pytest.raises(CompressError, match=message) as error:
        prune.main("shallow", *(started / at for at in ("models/base", "data", "models/shallow", "traces/shallow")))
    assert "\n" not in str(error.value)
    assert [path.name for path in (started / "models").iterdir()] == ["base"]
