"""The family prune → distill → quantize → repair through the stages: params.yaml, artifacts and reports."""

import json

import pytest
from tiny_repository import make_base

from compress.errors import CompressError
from pipelines import distill, evaluate, prune, quantize
from pipelines.params import ParamsError, load
from pipelines.rederive import rederive
from registry.manifest import read

TRAINED = {"steps": 2, "batch": 2, "learning_rate": 0.001, "warmup_steps": 0, "teacher": "base", "data": "distillation"}
VARIANTS = {
    "prune": {"shallow": {"from": "base", "method": "depth", "remove_layers": 1}},
    "distill": {
        "student": {"from": "shallow", **TRAINED},
        "repaired": {"from": "awq-w4", "train": "scales", **TRAINED},
        "student-awq-w4-repaired": {"from": "student-awq-w4", "train": {"method": "codes", "rate": 600}, **TRAINED},
        "twice": {"from": "repaired", "train": "codes", **TRAINED},
    },
    "quantize": {"awq-w4": {"from": "base"}, "student-awq-w4": {"from": "student", "layout": "internlm2"}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository in which every variant has been made but `twice`."""
    root = make_base(tmp_path_factory.mktemp("repair"), sections=VARIANTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("TURBOPRESS_DEVICE", "cpu")
        for key, stage in {
            "shallow": prune,
            "student": distill,
            "awq-w4": quantize,
            "student-awq-w4": quantize,
        }.items():
            run(root, stage, key)
        for key in ("repaired", "student-awq-w4-repaired"):
            run(root, distill, key)
    return root


def run(root, stage, key):
    models, parents = root / "models", load(root).parents(key)
    stage.main(key, *(models / name for name in parents.values()), root / "data", models / key, root / "traces" / key)


@pytest.fixture
def repository(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return made


@pytest.mark.parametrize(("key", "source"), [("repaired", "awq-w4"), ("student-awq-w4-repaired", "student-awq-w4")])
def test_a_repaired_model_is_an_artifact_of_its_students_format_with_both_parents(repository, key, source):
    before, after = (repository / "models" / name for name in (source, key))
    manifest = read(after)
    assert manifest.kind == "repaired"
    assert manifest.parents == {"from": read(before).digest, "teacher": read(repository / "models" / "base").digest}
    assert manifest.recipe["train"]["method"] == ("scales" if key == "repaired" else "codes")
    assert (after / "config.json").read_bytes() == (before / "config.json").read_bytes()
    assert {path.name for path in after.iterdir()} == {path.name for path in before.iterdir()}
    assert manifest.digest != read(before).digest
    assert "--backend turbomind --model-format awq\n" in (after / "README.md").read_text()
    assert len(json.loads((repository / "traces" / key / "trace.json").read_text())) == 2


def test_it_is_measured_as_a_model_of_four_bits(repository, tmp_path):
    reports = {}
    for key in ("awq-w4", "repaired"):
        models, out = repository / "models", tmp_path / f"{key}.json"
        evaluate.main(key, models / key, models / "base", repository / "data", out, tmp_path / key)
        reports[key] = json.loads(out.read_text())
    assert reports["repaired"]["kind"] == "repaired"
    for size in ("size_bytes", "bits_per_weight", "bits_per_linear_weight"):
        assert reports["repaired"]["metrics"][size] == reports["awq-w4"]["metrics"][size]
    assert reports["repaired"]["metrics"]["kl_nats"] != reports["awq-w4"]["metrics"]["kl_nats"]


def test_the_same_inputs_make_the_same_bytes(repository, tmp_path):
    models = repository / "models"
    out = tmp_path / "repaired"  # a model's card has its name
    distill.main("repaired", models / "awq-w4", models / "base", repository / "data", out, tmp_path / "trace")
    assert read(out).digest == read(models / "repaired").digest


def test_it_cannot_be_made_again_by_quantization(repository):
    with pytest.raises(ParamsError, match="is repaired, and only quantization is done again"):
        rederive(repository / "models" / "repaired", 1, [], repository / "data")


def test_explain_names_the_model_whose_rounding_it_can_look_at(repository, turbopress):
    status, _, err = turbopress("explain", "repaired")
    assert status == 1
    assert "repaired: was trained after it was rounded, and explain looks at rounding; explain awq-w4" in err


def test_a_folder_of_another_format_than_params_say_is_refused(repository, tmp_path):
    models = repository / "models"
    with pytest.raises(CompressError, match=r"is in 16 bits, and only 4 bits in awq or compressed-tensors"):
        distill.main("repaired", models / "base", models / "base", repository / "data", tmp_path / "a", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
