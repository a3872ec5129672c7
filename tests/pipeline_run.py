"""The repository in a temporary clone, with numbers small enough to run the whole pipeline in about a minute."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
QUICK = {
    "calibration": {"windows": 8, "length": 64},
    "evaluation": {"windows": 8, "length": 64},
    "distillation": {"windows": 16, "length": 64},
}


class Clone:
    """A checkout of the working tree's files under git, as a new user would have it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
        # The stages must run this copy's code, found from any working folder, by the tests' own interpreter.
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GIT_"))}
        self.env = kept | {"PATH": tools, "PYTHONPATH": str(folder)}
        self.make_quick()
        self.run("git", "init", "--quiet")
        self.commit("start")

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the clone; its output comes back."""
        done = subprocess.run(command, cwd=self.folder, env=self.env | env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        author = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        self.run("git", *author, "commit", "--quiet", "--message", message)

    def params(self, change) -> None:
        """Rewrites params.yaml by `change(values)`."""
        path = self.folder / "params.yaml"
        values = yaml.safe_load(path.read_text("utf8"))
        change(values)
        path.write_text(yaml.safe_dump(values, sort_keys=False), "utf8")

    def make_quick(self) -> None:
        def quicken(values):
            for name, numbers in QUICK.items():
                values["data"][name] |= numbers
            values["distill"]["student"] |= {"steps": 2, "batch": 2, "warmup_steps": 1, "precision": "float32"}

        self.params(quicken)

    def stages_to_run(self) -> set[str]:
        """The stages that `dvc repro` would run now."""
        lines = self.run("dvc", "repro", "--dry").stdout.splitlines()
        return {line.split("'")[1] for line in lines if line.startswith("Running stage")}


def _files() -> list[str]:
    """What git would check out, with what is new and not ignored."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    generated = ("dvc.lock", "reports/", "benchmarks/")
    return [name for name in names if not name.startswith(generated) and (ROOT / name).is_file()]
