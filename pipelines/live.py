"""A training's losses, rate and speed in MLflow while it runs; a store that is not there, or fails, stops no training.

A thread of its own opens the store and writes, some steps at a time, so that the training waits for neither.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compress.distill.loop import Step, Watch
from registry.errors import RegistryError
from registry.store import connect, experiment_id, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

EXPERIMENT = "training"
PAUSE_S = 1.0  # between two writes, at least


@contextmanager
def live(
    root: Path, name: str, recipe: Mapping[str, object], *, tokens: int = 0, quiet: bool = False
) -> Iterator[Watch]:
    """Yields what hears of steps, each of so many `tokens`; behind it the run in MLflow is ended, well or not."""
    steps: queue.SimpleQueue[Step | str] = queue.SimpleQueue()
    writer = threading.Thread(target=_write, args=(root, name, recipe, steps, tokens), daemon=True)
    if quiet:
        yield lambda step: None
        return
    writer.start()
    status = "FAILED"
    try:
        yield steps.put
        status = "FINISHED"
    finally:
        steps.put(status)
        writer.join(timeout=30)


def _write(
    root: Path, name: str, recipe: Mapping[str, object], steps: "queue.SimpleQueue[Step | str]", tokens: int
) -> None:
    try:
        store = connect(root)
        with explained(store.uri):
            tags = {"mlflow.runName": name, "dvc.exp": os.environ.get("DVC_EXP_NAME", "")}
            with store.alone():
                run_id = store.client.create_run(experiment_id(store, EXPERIMENT), tags=tags).info.run_id
            for key, value in recipe.items():
                store.client.log_param(run_id, key, str(value)[:500])
            store.client.set_terminated(run_id, _follow(store.client, run_id, steps, tokens))
    except RegistryError as error:
        print(f"turbopress: losses are not shown in MLflow: {error}", file=sys.stderr, flush=True)


def _follow(client: "MlflowClient", run_id: str, steps: "queue.SimpleQueue[Step | str]", tokens: int) -> str:
    """Writes steps as they come, until the word how it ended comes."""
    last, since = -1, time.monotonic()
    while True:
        waiting: list[Step | str] = [steps.get()]
        while not steps.empty():
            waiting.append(steps.get())
        heard, now = [step for step in waiting if isinstance(step, Step)], time.monotonic()
        newest = max([last, *(step.step for step in heard)])
        speed = [] if last < 0 or newest == last else [(newest, tokens * (newest - last) / (now - since))]
        client.log_batch(run_id, metrics=_metrics(heard, speed))
        last, since = newest, now
        if isinstance(waiting[-1], str):
            return waiting[-1]
        time.sleep(PAUSE_S)


def _metrics(steps: Sequence[Step], speed: Sequence[tuple[int, float]]) -> "list[Metric]":
    from mlflow.entities import Metric  # noqa: PLC0415 (loaded by now)

    now = int(time.time() * 1000)
    told = [Metric(name, value, now, step.step) for step in steps for name, value in _told(step).items()]
    return told + [Metric("tokens_per_s", value, now, step) for step, value in speed]


def _told(step: Step) -> dict[str, float]:
    """What a step is told by: behind a look at the held-out windows it comes again, with their loss."""
    if step.held_out_nats is not None:
        return {"held_out_nats": step.held_out_nats}
    rate = {} if step.learning_rate is None else {"learning_rate": step.learning_rate}
    return {"loss_nats": step.loss_nats, **rate}
