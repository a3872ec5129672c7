"""How long `make repro` takes after installation, how much memory, and how long a second run: on this machine.

    python benchmarks/demo_pipeline.py            # a fresh clone of HEAD in a temporary folder; about five minutes

Writes benchmarks/results/demo_pipeline.json. The clone borrows this checkout's environment, so installation is left
out of the time, as the promise in the README says.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo_pipeline.json"
SAMPLE_S = 0.1


class PeakMemory(threading.Thread):
    """The greatest sum of resident memory over a process and its descendants, sampled ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak_bytes = psutil.Process(pid), 0

    def run(self) -> None:
        """Samples until the process has ended."""
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            self.peak_bytes = max(self.peak_bytes, sum(_resident(p) for p in self._tree()))
            time.sleep(SAMPLE_S)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Runs a command to its end and says what it took."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder)
    memory = PeakMemory(process.pid)
    memory.start()
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    memory.join()
    return {"elapsed_s": round(time.monotonic() - start, 1), "peak_bytes": memory.peak_bytes}


def main() -> None:
    """Clones, runs twice, writes the result."""
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "turbopress"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = clone / ".venv"
        environment.symlink_to(ROOT / ".venv")
        os.utime(ROOT / ".venv" / "installed")
        os.environ["PYTHONPATH"] = str(clone)  # the clone's code, not this checkout's
        first = timed(["make", "repro"], clone)
        os.environ["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        second = timed(["dvc", "repro"], clone)
        shutil.rmtree(clone / "mlartifacts", ignore_errors=True)
    result = {
        "make_repro": first,
        "second_dvc_repro": second,
        "cpu_cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
