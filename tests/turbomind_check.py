"""LMDeploy's own loader, in an environment of its own: the GPU is emulated, so this proves nothing about numbers."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT.parent / "shared" / "turbomind_check"
HOME = Path(os.environ.get("TURBOMIND_CHECK_VENV") or ROOT / ".venv-turbomind")
OTHER_ENGINE = ("triton==3.9.0", "pyzmq", "einops")  # the kernels are imported and not run
MISSING = "../shared/turbomind_check is not there"
ALONE = FileLock(ROOT / ".venv-turbomind.lock")  # several processes of tests want the same environment


def interpreter():
    """The interpreter of an environment with LMDeploy, made once for all runs of the tests."""
    marker = HOME / "installed"
    with ALONE:
        if "TURBOMIND_CHECK_VENV" not in os.environ and not marker.exists():
            shutil.rmtree(HOME, ignore_errors=True)  # what an interrupted run left
            made = subprocess.run([PROGRAM / "setup.sh", HOME], capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr[-3000:]
            marker.touch()
    return HOME / "bin" / "python"


def other_engine(python):
    """A folder with what LMDeploy's PyTorch engine imports beside that, made once for all runs of the tests."""
    folder, incoming = ROOT / ".venv-turbomind" / "other", ROOT / ".venv-turbomind" / "incoming"
    with ALONE:
        if not folder.exists():
            shutil.rmtree(incoming, ignore_errors=True)
            command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", incoming, *OTHER_ENGINE]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr[-3000:]
            incoming.rename(folder)
    return folder


def ask(python, folder, gpu):
    """The engine's verdict on a folder, as a GPU of this compute capability; the folder says its format."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, PROGRAM / "check.py", folder, "--cc", gpu, "--engine", "model_format=None"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])
