"""Registers one new artifact after the other, and kills the process at random moments with SIGKILL.

    python kill_registers.py ROOT KILLS LONGEST_S SEED      # prints one JSON line

Afterwards everything is registered once more, as `dvc repro` does, and every version's files are verified.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import mlflow  # noqa: F401 - imported here once, not in each child
from fake_artifacts import fake_artifact, fake_report

from registry.manifest import verify
from registry.publish import publish
from registry.resolve import list_versions, resolve
from registry.store import connect, prepare


def artifact(root, number):
    """The artifact of that number, made once."""
    place = root / "models" / f"v{number}"
    if not place.exists():
        incoming = root / "models" / f"{os.getpid()}-{number}"
        fake_artifact(incoming, f"weights {number}")
        os.rename(incoming, place)
    return place


def register(root, number):
    return publish(artifact(root, number), fake_report("awq-w4"), root=root, model="demo", variant="awq-w4")


def child(root):
    """A process that registers until it is killed; its id."""
    process = os.fork()
    if process:
        return process
    number = sum(1 for _ in (root / "done").iterdir())
    while True:
        register(root, number)
        (root / "done" / str(number)).touch()
        number += 1


def half_visible(root):
    """Versions whose files are not all there and as they were sealed: what a reader must never meet."""
    try:
        found = list_versions("demo", root=root)
    except Exception as error:
        if "has no model" in str(error) or "nothing was registered here yet" in str(error):
            return 0
        raise
    wrong = 0
    for version in found:
        try:
            wrong += verify(resolve(f"demo/{version.number}", root=root)).digest != version.digest
        except Exception:
            wrong += 1
    return wrong


def main(root, kills, longest_s, seed):
    root, chance, killed, half = Path(root), random.Random(int(seed)), 0, 0
    (root / "done").mkdir()
    (root / "models").mkdir()
    maker = os.fork()
    if not maker:
        prepare(root)  # seconds for MLflow's tables, which would leave no kill for the registering
        os._exit(0)
    assert os.waitpid(maker, 0)[1] == 0
    for _ in range(int(kills)):
        process = child(root)
        time.sleep(chance.uniform(0, float(longest_s)))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        killed += os.WIFSIGNALED(status)
        reader = os.fork()
        if not reader:
            os._exit(min(100, half_visible(root)))
        half += os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
    made = sum(1 for path in (root / "models").iterdir() if path.name.startswith("v"))
    healed = [register(root, number).outcome for number in range(made)]
    listed = list_versions("demo", root=root)
    digests = [version.digest for version in listed]
    client = connect(root).client
    pointed = client.get_model_version_by_alias("demo", "awq-w4").tags["digest"]
    last = verify(root / "models" / f"v{made - 1}").digest
    print(json.dumps({
        "killed": killed, "half_visible": half, "artifacts": made, "versions": len(digests),
        "lost": made - len(set(digests)), "doubled": len(digests) - len(set(digests)),
        "healed": healed.count("registered"), "alias_is_last": pointed == last,
    }))  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
