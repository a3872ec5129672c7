"""The stage `distill`: from two models and a text to an artifact and a trace, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from shutil import rmtree

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_repository import write_base, write_params, write_source, write_text

from compress.checkpoint.load import load_model
from compress.distill import cache
from compress.errors import CompressError
from pipelines import distill
from registry.errors import RegistryError
from registry.manifest import read, verify


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


def folders(root, key):
    """What the stage is given for a student."""
    return [root / place for place in ("models/base", "models/other", "text", f"models/{key}", f"t/{key}")]


def test_the_student_comes_to_the_device_when_its_teacher_has_left(repository, monkeypatch):
    load, fill, happened, teacher = distill.load_model, distill.fill, [], []

    def loaded(folder, *arguments, **more):
        happened.append((f"{folder.name} loaded", [weight() is not None for weight in teacher]))
        model = load(folder, *arguments, **more)
        if folder.name == "other":
            teacher.append(weakref.ref(model.model.layers[0].mlp.up_proj.weight))
        return model

    def filled(*arguments):
        fill(*arguments)
        happened.append(("cache filled", [True]))

    monkeypatch.setattr(distill, "load_model", loaded)
    monkeypatch.setattr(distill, "fill", filled)
    distill.main("cached", *folders(repository, "cached"))
    assert happened == [("other loaded", []), ("cache filled", [True]), ("base loaded", [False])]


def test_another_learning_rate_reads_what_the_teacher_has_said_before(repository, monkeypatch):
    given = folders(repository, "cached")
    distill.main("cached", *given)
    (kept,) = (repository / "models").glob(".cached.*")
    rmtree(given[3])
    rmtree(given[4])
    params = repository / "params.yaml"
    changed = yaml.safe_load(params.read_text("utf8"))
    changed["distill"]["cached"]["learning_rate"] = 0.002
    params.write_text(yaml.safe_dump(changed), "utf8")
    asked = []
    monkeypatch.setattr(cache, "run", lambda *said, **_: asked.append(said))
    distill.main("cached", *given)
    assert not asked
    assert list((repository / "models").glob(".cached.*")) == [kept]


@pytest.mark.parametrize("taken", [3, 4], ids=["model", "trace"])
def test_a_place_that_is_taken_is_refused_before_anything_is_trained(repository, monkeypatch, taken):
    monkeypatch.setattr(distill, "distill_", lambda *_, **__: pytest.fail("trained"))
    given = folders(repository, "plain")
    given[taken].mkdir(parents=True)
    (given[taken] / "file").touch()
    with pytest.raises(RegistryError, match=f"{given[taken]}: exists already"):
        distill.main("plain", *given)


def test_a_teacher_that_reads_texts_otherwise_is_refused_by_the_stage_before_anything_is_loaded(
    repository, monkeypatch
):
    monkeypatch.setattr(distill, "load_model", lambda *_, **__: pytest.fail("loaded"))
    write_source(repository / "foreign")
    content = json.loads((repository / "foreign" / "tokenizer.json").read_text("utf8"))
    content["added_tokens"][1]["rstrip"] = True
    (repository / "foreign" / "tokenizer.json").write_text(json.dumps(content), "utf8")
    write_base(repository / "foreign", repository / "models" / "foreign")
    student, _, *others = folders(repository, "plain")
    with pytest.raises(CompressError, match=r"rstrip of token 1 \('<s>'\) is True, and False in .*models/base/tok"):
        distill.main("plain", student, repository / "models" / "foreign", *others)


def test_the_stage_trains_alike_beside_the_teacher_and_from_its_cache(repository, capsys):
    found = {}
    for key in ("plain", "cached"):
        given = folders(repository, key)
        distill.main(key, *given)
        found[key] = [row["loss_nats"] for row in json.loads((given[4] / "trace.json").read_text("utf8"))]
        assert verify(given[3]).data.keys() == {"distillation"}
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


KILLS_ITSELF = """
import os, signal, sys
from pathlib import Path
from compress.distill import state
from pipelines import distill
write = state.write
def write_and_die(*saved):
    write(*saved)
    os.kill(os.getpid(), signal.SIGKILL)
state.write = write_and_die
distill.main("plain", *map(Path, sys.argv[1:]))
"""


def test_killed_behind_a_step_it_goes_on_to_the_same_trace_and_bytes(repository):
    given = folders(repository, "plain")
    distill.main("plain", *given)
    expected, trace = read(given[3]), (given[4] / "trace.json").read_bytes()
    for folder in given[3:]:
        rmtree(folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", KILLS_ITSELF, *given], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not given[3].exists()
    (kept,) = (repository / "models").glob(".plain.training-*/training.safetensors")
    with safe_open(kept, "pt") as state:
        assert [step["step"] for step in json.loads(state.metadata()["about"])["steps"]] == [0]
    distill.main("plain", *given)
    assert read(given[3]) == expected
    assert (given[4] / "trace.json").read_bytes() == trace
    assert not kept.parent.exists()
