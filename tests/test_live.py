"""A training's losses are in MLflow while it runs; a store that fails stops nothing and says so in one line."""

import time

import pytest

from compress.distill.loop import Step
from pipelines.live import EXPERIMENT, live
from registry.store import prepare


def histories(store):
    (run,) = store.client.search_runs([store.client.get_experiment_by_name(EXPERIMENT).experiment_id])
    names = ("loss_nats", "held_out_nats", "learning_rate", "tokens_per_s")
    kinds = {kind: store.client.get_metric_history(run.info.run_id, kind) for kind in names}
    return run, {kind: [(m.step, m.value) for m in found] for kind, found in kinds.items()}


def test_losses_are_there_while_the_training_runs_and_its_end_behind_it(tmp_path):
    store = prepare(tmp_path)
    with live(tmp_path, "student", {"steps": 2, "loss": {"kind": "forward_kl"}}, tokens=512) as watch:
        watch(Step(0, 1.5, learning_rate=0.25))
        for _ in range(100):
            if store.client.get_experiment_by_name(EXPERIMENT) and histories(store)[1]["loss_nats"]:
                break
            time.sleep(0.2)
        run, early = histories(store)
        assert (run.info.status, early["loss_nats"]) == ("RUNNING", [(0, 1.5)])
        watch(Step(1, 1.25, learning_rate=0.5))
        watch(Step(1, 1.25, held_out_nats=0.0, learning_rate=0.5))  # which is a loss like any other
    run, found = histories(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "student"
    assert run.data.params["steps"] == "2"
    ((step, speed),) = found.pop("tokens_per_s")
    assert step == 1
    assert 0 < speed < 512 / 0.1  # the steps are heard a second apart
    rates = [(0, 0.25), (1, 0.5)]
    assert found == {"loss_nats": [(0, 1.5), (1, 1.25)], "held_out_nats": [(1, 0.0)], "learning_rate": rates}


def test_a_training_that_fails_is_a_failed_run(tmp_path):
    store = prepare(tmp_path)

    def fail():
        with live(tmp_path, "student", {}) as watch:
            watch(Step(0, 1.5))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert histories(store)[0].info.status == "FAILED"


def test_without_a_store_the_training_goes_on_and_one_line_says_so(tmp_path, capsys):
    with live(tmp_path, "student", {}) as watch:
        watch(Step(0, 1.5))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("turbopress: losses are not shown in MLflow: ")


def test_processes_beside_the_first_are_silent(tmp_path, capsys):
    with live(tmp_path, "student", {}, quiet=True) as watch:
        watch(Step(0, 1.5))
    assert capsys.readouterr().err == ""
