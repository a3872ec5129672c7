"""What a run in MLflow says about an artifact: settings, numbers, data, pictures, and where it all came from.

Every variant's run has the same metric names, so that MLflow's compare view lines them up. Times, the git commit
and dvc.lock are kept here and not in the artifact: they differ between two runs that made the same bytes.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from registry.flatten import flatten
from registry.hashing import sha256_file, sha256_json
from registry.manifest import Manifest
from registry.races import settled
from registry.report import Report
from registry.versions import find

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMS_A_BATCH = 100  # MLflow takes no more in one call
COMPARISON = "comparison"  # the folder of a run that shows all variants, and the tag that says which state of it
DATASET_DIGEST_LENGTH = 36  # nor a longer digest; the whole sha256 stands in the source


@dataclass(frozen=True)
class Entry:
    """One artifact with all that is said about it."""

    folder: Path
    manifest: Manifest
    report: Report
    model: str
    variant: str
    plots: tuple[Path, ...]
    params: Mapping[str, JsonValue]
    root: Path
    attachments: tuple[Path, ...] = ()  # files that stand beside report.json under their own names

    @property
    def tags(self) -> dict[str, str]:
        """What the artifact is: the same on its runs, its logged model and its version."""
        manifest = self.manifest
        return {
            "digest": manifest.digest,
            "variant": self.variant,
            "kind": manifest.kind,
            **{f"base.{name}": value for name, value in manifest.origin.items()},
            **{f"parent.{role}": digest for role, digest in manifest.parents.items()},
            **{f"data.{name}": digest for name, digest in manifest.data.items()},
        }

    @property
    def settings(self) -> dict[str, str]:
        manifest = self.manifest
        nested: dict[str, JsonValue] = {
            "recipe": manifest.recipe,
            "protocol": self.report.protocol,
            "versions": {**manifest.versions},
            "made_on": {**manifest.made_on},
            "seed": manifest.seed,
        }
        return flatten(nested) | flatten(self.params)

    @property
    def description(self) -> str:
        made = ", ".join(f"{role} {digest[:12]}" for role, digest in self.manifest.parents.items())
        head = f"{self.variant}: {self.manifest.kind}{f' ({made})' if made else ''}, {self.manifest.digest[:12]}"
        return f"{head}\n\n{self.report.table}"


@contextmanager
def run(client: "MlflowClient", experiment_id: str, entry: Entry) -> Iterator[str]:
    """A run of this entry, open from before the work until after it: what fails is seen to have failed."""
    tags = entry.tags | {"report": entry.report.sha256} | workspace_tags(entry.root)
    run_id = client.create_run(experiment_id, run_name=entry.variant, tags=tags).info.run_id
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def log(client: "MlflowClient", run_id: str, model_id: str, entry: Entry) -> None:
    """Logs settings, metrics (to the run and the model), data sets, the report and the plots."""
    from mlflow.entities import Metric, Param  # noqa: PLC0415 (loaded by now)

    now = int(time.time() * 1000)
    metrics = [Metric(k, v, now, 0, model_id=model_id) for k, v in entry.report.metrics.items()]
    client.log_batch(run_id, metrics=metrics)
    params = [Param(name, value) for name, value in entry.settings.items()]
    for start in range(0, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_A_BATCH])
    settled(lambda: client.log_inputs(run_id, datasets=[*_datasets(entry)]))
    client.log_dict(run_id, entry.report.model_dump(mode="json"), "report.json")
    for plot in entry.plots:
        client.log_artifact(run_id, str(plot), "plots")
    for attachment in entry.attachments:
        client.log_artifact(run_id, str(attachment))


def attach_comparison(client: "MlflowClient", run_id: str, files: Sequence[Path]) -> None:
    """The run shows these files, which are sent again only when one of them has changed."""
    if not files:
        return
    digest = sha256_json([[file.name, sha256_file(file)] for file in files])
    made = client.get_run(run_id)
    if made.data.tags.get(COMPARISON) == digest or made.info.lifecycle_stage != "active":
        return
    for file in files:
        client.log_artifact(run_id, str(file), COMPARISON)
    client.set_tag(run_id, COMPARISON, digest)


def link_parents(client: "MlflowClient", run_id: str, entry: Entry) -> None:
    """Lists the parents' logged models as inputs of the run, as far as they are registered by now.

    Variants are registered in any order, so this is done again at each publish until all parents are there.
    """
    from mlflow.entities import LoggedModelInput  # noqa: PLC0415 (loaded by now)

    if not entry.manifest.parents:
        return
    made = client.get_run(run_id)
    known = {listed.model_id for listed in made.inputs.model_inputs}
    parents = [find(client, entry.model, digest) for digest in entry.manifest.parents.values()]
    fresh = {parent.model_id for parent in parents if parent} - known
    if fresh and made.info.lifecycle_stage == "active":  # a run somebody deleted takes no more inputs
        inputs = [LoggedModelInput(model_id) for model_id in sorted(fresh)]
        settled(lambda: client.log_inputs(run_id, models=inputs))


def workspace_tags(root: Path) -> dict[str, str]:
    """The code and the pipeline state this was registered from."""
    tags = {}
    commit = git(root, "rev-parse", "HEAD")
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit  # the name under which MLflow shows it
        tags["git.dirty"] = str(bool(git(root, "status", "--porcelain"))).lower()
    lock = root / "dvc.lock"
    if lock.exists():
        tags["dvc.lock.md5"] = hashlib.md5(lock.read_bytes(), usedforsecurity=False).hexdigest()
    return tags


def _datasets(entry: Entry) -> Iterator[object]:
    """The token ids that made the artifact and those it was measured on, by digest: no data is loaded."""
    from mlflow.entities import Dataset, DatasetInput, InputTag  # noqa: PLC0415 (loaded by now)

    for name, sha256 in {**entry.manifest.data, **entry.report.data}.items():
        source = json.dumps({"sha256": sha256})
        dataset = Dataset(name, sha256[:DATASET_DIGEST_LENGTH], "turbopress", source)
        yield DatasetInput(dataset, [InputTag("mlflow.data.context", name)])


def git(root: Path, *words: str) -> str | None:
    """What git says, or None where there is no repository with a commit (or no git) to ask."""
    try:
        said = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
