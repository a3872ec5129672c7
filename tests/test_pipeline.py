"""`dvc repro` end to end in a clone of this repository: real stages, a real MLflow store, real processes."""

import json

import pytest
from mlflow import MlflowClient
from servable import servable

from compress.checkpoint.checkpoint import Checkpoint
from registry.manifest import verify

KEYS = ["base", "shallow", "student", "rtn-w4", "awq-w4", "student-awq-w4"]
LOOK_UPS = {
    "register-base",
    "register-pruned@shallow",
    "register-distilled@student",
    "register-quantized@rtn-w4",
    "register-quantized@awq-w4",
    "register-quantized@student-awq-w4",
}


def changed(clone, change):
    """The stages that would run after a change of params.yaml, which is taken back."""
    before = (clone.folder / "params.yaml").read_text()
    clone.params(change)
    stages = clone.stages_to_run()
    (clone.folder / "params.yaml").write_text(before)
    return stages - {"check", "compare"} - LOOK_UPS


def versions(clone):
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    return {v.tags["variant"]: v for v in client.search_model_versions("name='internlm2-demo'")}


def test_every_variant_has_a_model_and_a_report_with_the_same_keys(pipeline):
    reports = [json.loads((pipeline.folder / "reports" / f"{key}.json").read_text()) for key in KEYS]
    assert len({tuple(report["metrics"]) for report in reports}) == 1
    for key, report in zip(KEYS, reports, strict=True):
        assert verify(pipeline.folder / "models" / key).digest == report["artifact"]
    assert reports[0]["metrics"]["kl_nats"] == 0
    assert reports[0]["metrics"]["top1_agreement"] == 1


def test_the_artifacts_are_what_their_names_say(pipeline):
    models = {key: Checkpoint(pipeline.folder / "models" / key) for key in KEYS}
    assert models["shallow"].config.num_layers == models["base"].config.num_layers - 2
    assert models["student"].config == models["shallow"].config
    assert [key for key in KEYS if models[key].quantization] == ["rtn-w4", "awq-w4", "student-awq-w4"]


def test_lineage_leads_from_the_quantized_student_to_the_base(pipeline):
    manifests = {key: verify(pipeline.folder / "models" / key) for key in KEYS}
    assert manifests["student-awq-w4"].parents == {"from": manifests["student"].digest}
    assert manifests["student"].parents == {"from": manifests["shallow"].digest, "teacher": manifests["base"].digest}
    assert manifests["shallow"].parents == {"from": manifests["base"].digest}
    assert manifests["student-awq-w4"].origin == {"source": "examples/demo/base"}


def test_every_variant_is_registered_under_its_alias_without_a_second_copy(pipeline):
    assert sorted(versions(pipeline)) == sorted(KEYS)
    client = MlflowClient(f"sqlite:///{pipeline.folder}/mlflow.db")
    for key in KEYS:
        version = client.get_model_version_by_alias("internlm2-demo", key)
        assert version.tags["variant"] == key
        assert "metrics.kl_nats" in version.tags
    weights = next((pipeline.folder / "models" / "awq-w4").glob("model-00002*"))
    assert any(path.samefile(weights) for path in (pipeline.folder / "mlartifacts").rglob(weights.name))


def test_the_pruned_model_can_be_served_by_one_gpu_and_by_two(pipeline):
    servable(pipeline.folder / "models" / "shallow")


def test_a_second_repro_does_nothing_but_the_register_look_ups(pipeline):
    before = {key: v.version for key, v in versions(pipeline).items()}
    done = pipeline.run("dvc", "repro")
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}
    assert ran == LOOK_UPS
    assert {key: v.version for key, v in versions(pipeline).items()} == before
    assert done.stdout.count("unchanged") >= len(LOOK_UPS)


def test_one_name_registers_everything_into_another_store(pipeline, tmp_path):
    there = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}
    done = pipeline.run("dvc", "repro", "register", **there)
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}
    assert ran >= LOOK_UPS
    assert not ran - LOOK_UPS - {"register"}
    client = MlflowClient(there["MLFLOW_TRACKING_URI"])
    assert {v.tags["variant"] for v in client.search_model_versions("name='internlm2-demo'")} == set(KEYS)
    pipeline.run("dvc", "repro", "register")  # ours again, whose versions may have other numbers


def test_editing_an_embedded_text_is_seen(pipeline):
    text = pipeline.folder / "examples/demo/text/calibration.jsonl"
    before = text.read_bytes()
    text.write_bytes(before + b'{"text": "One more."}\n')
    assert "check" in pipeline.stages_to_run()
    text.write_bytes(before)
    assert pipeline.stages_to_run() == LOOK_UPS


def test_changing_one_variant_runs_its_branch_alone(pipeline):
    def damp(values):
        values["quantize"]["awq-w4"]["damping"] = 0.4

    # A dry run cannot know yet that what is made from a changed model changes too.
    assert changed(pipeline, damp) == {"quantize@awq-w4"}

    def train_longer(values):
        values["distill"]["student"]["steps"] = 3

    assert "distill@student" in changed(pipeline, train_longer)
    assert not changed(pipeline, train_longer) & {"quantize@awq-w4", "prune@shallow", "evaluate-base"}


def test_changing_the_evaluation_runs_no_quantization(pipeline):
    def look_longer(values):
        values["data"]["evaluation"]["windows"] = 9

    stages = changed(pipeline, look_longer)
    assert "corpus@evaluation" in stages
    assert not any(stage.startswith(("quantize", "prune", "distill", "corpus@cal")) for stage in stages)


def test_an_experiment_measures_its_change_and_moves_no_alias(pipeline):
    pipeline.commit("measured")
    before = versions(pipeline)["rtn-w4"].version
    pipeline.run("dvc", "exp", "run", "-S", "quantize.awq-w4.clip.least=0.9", "register-quantized@awq-w4")
    difference = json.loads(pipeline.run("dvc", "metrics", "diff", "--json").stdout)
    assert difference["reports/awq-w4.json"]["metrics.kl_nats"]["diff"] != 0
    client = MlflowClient(f"sqlite:///{pipeline.folder}/mlflow.db")
    aliased = client.get_model_version_by_alias("internlm2-demo", "awq-w4")
    newest = max(client.search_model_versions("name='internlm2-demo'"), key=lambda v: int(v.version))
    assert newest.tags["candidate"] == "true"
    assert aliased.version != newest.version
    assert versions(pipeline)["rtn-w4"].version == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["quantize"]["awq-w4"].update({"group_size": 64}), "only 128 is taken by TurboMind"),
        (lambda v: v["quantize"]["awq-w4"].update({"from": "nothing"}), "no model is named nothing"),
        (lambda v: v["data"]["calibration"].update({"window": 3}), "data.calibration.window: unknown key"),
    ],
    ids=["group-64", "no-parent", "unknown-key"],
)
def test_a_bad_parameter_stops_everything_before_it_starts(pipeline, change, message):
    before = (pipeline.folder / "params.yaml").read_text()
    pipeline.params(change)
    done = pipeline.run("dvc", "repro", check=False)
    (pipeline.folder / "params.yaml").write_text(before)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not [line for line in done.stdout.splitlines() if "quantize@" in line and "Running" in line]
