"""Publishing is idempotent, complete or absent, and changes nothing production reads while it experiments."""

import json
import os
import shutil

import pytest
from fake_artifacts import enter, fake_artifact, fake_report, runs

import registry.publish
from registry.errors import RegistryError
from registry.manifest import verify
from registry.resolve import list_versions, resolve
from registry.store import connect

pytest_plugins = ["fake_stores"]


def stored_files(root):
    return sorted(p for p in (root / "mlartifacts" / "models").rglob("*") if p.is_file())


def test_a_published_artifact_is_found_by_alias_and_by_number(root, artifact):
    published = enter(root)
    assert published.outcome == "registered"
    for reference in ("demo@awq-w4", "demo/1", published.uri):
        assert verify(resolve(reference, root=root)) == verify(artifact)


def test_published_twice_is_published_once(root, artifact):
    first, second = enter(root), enter(root)
    assert second.outcome == "unchanged"
    assert second.version.number == first.version.number
    assert len(runs(root)) == len(list_versions("demo", root=root)) == 1


def test_a_new_report_of_the_same_artifact_updates_its_version_and_is_a_run_of_its_own(root, artifact):
    enter(root)
    better = fake_report("awq-w4", perplexity=11.5)
    del better["metrics"]["kl_nats"]
    assert enter(root, report=better).outcome == "measured again"
    assert enter(root, report=better).outcome == "unchanged"
    (version,) = list_versions("demo", root=root)
    assert version.metrics == enter(root, report=better).version.metrics == better["metrics"]
    assert len(runs(root)) == 2
    newer = connect(root).client.get_run(version.tags["measured_by"])
    assert [m.model_id for m in newer.inputs.model_inputs] == [version.model_id]


def test_going_back_to_an_earlier_report_shows_it_again_without_a_new_run(root, artifact):
    first = enter(root)
    enter(root, report=fake_report("awq-w4", perplexity=11.5))
    assert enter(root).outcome == "unchanged"
    (version,) = list_versions("demo", root=root)
    assert version.metrics["perplexity"] == 12.3
    assert version.tags["measured_by"] == first.version.run_id
    assert len(runs(root)) == 2


def test_a_new_artifact_of_a_variant_is_a_new_version_and_takes_the_alias(root, artifact):
    enter(root)
    shutil.rmtree(artifact)
    fake_artifact(artifact, "better weights")
    enter(root)
    newest, oldest = list_versions("demo", root=root)
    assert (newest.number, newest.aliases) == (2, ("awq-w4",))
    assert (oldest.number, oldest.aliases) == (1, ())


def test_equal_artifacts_of_two_variants_are_two_versions_with_their_own_reports(root, artifact):
    shutil.copytree(artifact, root / "models" / "twin")
    enter(root)
    enter(root, "twin", report=fake_report("twin", perplexity=1.0))
    assert enter(root).outcome == "unchanged"
    assert enter(root, "twin", report=fake_report("twin", perplexity=1.0)).outcome == "unchanged"


def test_the_store_holds_no_second_copy(root, artifact):
    assert enter(root).placed == "linked"
    for file in stored_files(root):
        assert file.stat().st_nlink == 2
    assert len(stored_files(root)) == 4  # three files and the manifest


def test_the_registered_files_outlive_the_pipelines_folder(root, artifact):
    digest = verify(artifact).digest
    enter(root)
    shutil.rmtree(artifact)
    assert verify(resolve("demo@awq-w4", root=root)).digest == digest


def test_where_no_link_can_be_made_the_files_are_uploaded(root, artifact, monkeypatch):
    monkeypatch.setattr(os, "link", refuse_links)
    assert enter(root).placed == "uploaded"
    assert all(file.stat().st_nlink == 1 for file in stored_files(root))
    assert verify(resolve("demo@awq-w4", root=root)) == verify(artifact)


def refuse_links(*_):
    raise OSError(18, "Invalid cross-device link")


def test_a_run_carries_settings_numbers_data_plots_and_origin(root, artifact):
    plot = root / "ppl.png"
    plot.write_bytes(b"png")
    (root / "dvc.lock").write_text("stages: {}")
    report = fake_report("awq-w4") | {"data": {"evaluation": "e" * 64}}
    published = enter(root, report=report, plots=[plot], params={"registry": {"note": "x" * 7000}})
    (run,) = runs(root)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == fake_report("awq-w4")["metrics"]
    assert run.data.params["recipe.scales.grid"] == "20"
    assert run.data.params["protocol.windows"] == "40"
    assert run.data.tags["base.source"] == "examples/demo/base"
    assert len(run.data.tags["dvc.lock.md5"]) == 32
    data = {listed.dataset.name: json.loads(listed.dataset.source) for listed in run.inputs.dataset_inputs}
    assert data == {"calibration": {"sha256": "c" * 64}, "evaluation": {"sha256": "e" * 64}}
    client = connect(root).client
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"plots", "report.json"}
    model = client.get_logged_model(published.version.model_id)
    assert model.status == "READY"
    assert {m.key: m.value for m in model.metrics} == run.data.metrics
    assert run.outputs.model_outputs[0].model_id == model.model_id


def test_a_version_shows_its_metrics_as_tags_and_as_a_table(root, artifact):
    enter(root)
    entry = connect(root).client.get_model_version("demo", "1")
    assert entry.tags["metrics.perplexity"] == "12.3"
    assert "| size_bytes | 1,000 |" in entry.description
    assert entry.source.startswith("models:/m-")


def test_a_recipe_of_many_settings_is_logged_whole(root):
    fake_artifact(root / "models" / "awq-w4", recipe={f"layer{i}": i for i in range(250)})
    enter(root)
    (run,) = runs(root)
    assert run.data.params["recipe.layer249"] == "249"


@pytest.mark.parametrize("order", [("base", "awq-w4"), ("awq-w4", "base")])
def test_the_parents_logged_model_is_an_input_in_whichever_order_they_are_registered(root, order):
    base = fake_artifact(root / "models" / "base", "base weights", kind="base")
    fake_artifact(root / "models" / "awq-w4", parents={"from": base.digest})
    made = {variant: enter(root, variant) for variant in order}
    enter(root)
    client = connect(root).client
    child = client.get_run(made["awq-w4"].version.run_id)
    assert [m.model_id for m in child.inputs.model_inputs if m.model_id == made["base"].version.model_id]
    assert child.data.tags["parent.from"] == base.digest


def test_an_experiment_makes_a_candidate_and_moves_no_alias(root, artifact, monkeypatch):
    enter(root)
    shutil.rmtree(artifact)
    fake_artifact(artifact, "a trial")
    monkeypatch.setenv("DVC_EXP_NAME", "odd-name")
    assert enter(root).alias is None
    newest, oldest = list_versions("demo", root=root)
    assert (newest.is_candidate, newest.aliases) == (True, ())
    assert (oldest.is_candidate, oldest.aliases) == (False, ("awq-w4",))


def test_an_applied_experiment_loses_its_candidate_mark_and_takes_the_alias(root, artifact, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "odd-name")
    enter(root)
    monkeypatch.delenv("DVC_EXP_NAME")
    assert enter(root).outcome == "unchanged"
    (version,) = list_versions("demo", root=root)
    assert (version.is_candidate, version.aliases) == (False, ("awq-w4",))


def test_an_experiment_measures_a_registered_artifact_without_changing_what_its_version_shows(
    root, artifact, monkeypatch
):
    enter(root)
    before = connect(root).client.get_model_version("demo", "1").tags
    monkeypatch.setenv("DVC_EXP_NAME", "odd-name")
    other = fake_report("awq-w4", perplexity=99.0)
    assert [enter(root, report=other).outcome for _ in range(2)] == ["measured again", "unchanged"]
    assert connect(root).client.get_model_version("demo", "1").tags == before


def test_a_tampered_artifact_is_not_registered(root, artifact):
    (artifact / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"config.json has 2 bytes"):
        enter(root)
    assert connect(root).client.search_model_versions("") == []


def test_a_report_of_something_else_is_not_registered(root, artifact):
    for report, fault in [
        (fake_report("other"), "measured variant 'other'"),
        (fake_report("awq-w4") | {"artifact": "0" * 64}, "measured artifact 0000"),
        (fake_report("awq-w4", kl_nats=float("nan")), "metrics.kl_nats"),
        ({"variant": "awq-w4"}, "metrics: Field required"),
    ]:
        with pytest.raises(RegistryError, match=fault):
            enter(root, report=report)
    assert connect(root).client.search_model_versions("") == []


@pytest.mark.parametrize("variant", ["w4.g128", "latest", "v1", "a/b"])
def test_a_variant_that_can_be_no_alias_is_refused_before_the_work(root, variant):
    with pytest.raises(RegistryError, match=r"can be no alias in MLflow; rename it"):
        enter(root, variant)


def test_a_failure_leaves_run_and_model_failed_and_no_version_and_the_next_publish_succeeds(
    root, artifact, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(registry.publish, "log", fail)
        with pytest.raises(RegistryError, match=r"the disk is on fire; mend that"):
            enter(root)
    client = connect(root).client
    (run,) = runs(root)
    assert run.info.status == "FAILED"
    assert client.get_logged_model(run.outputs.model_outputs[0].model_id).status == "FAILED"
    assert client.search_model_versions("") == []
    assert enter(root).outcome == "registered"


def fail(*_):
    raise OSError("the disk is on fire")


def test_the_comparison_of_all_variants_is_on_each_run_and_sent_again_only_when_it_changed(root, artifact, monkeypatch):
    page = root / "summary.html"
    page.write_text("<p>one</p>")
    run_id = enter(root, comparison=[page]).version.tags["measured_by"]
    client = connect(root).client
    assert [f.path for f in client.list_artifacts(run_id, "comparison")] == ["comparison/summary.html"]
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", lambda *_: pytest.fail("sent again"))
        enter(root, comparison=[page])
    page.write_text("<p>two</p>")
    enter(root, comparison=[page])
    with open(client.download_artifacts(run_id, "comparison/summary.html", str(root))) as shown:
        assert shown.read() == "<p>two</p>"
