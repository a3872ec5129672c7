"""An environment that has LMDeploy, made once; and its real server over an emulated CUDA runtime, on any machine.

What such a server says is made up. Everything around it is real: the process, its ports, its HTTP, its way to die.
"""

import os
import subprocess

from turbomind_check import ALONE, PROGRAM, interpreter

SERVER_PACKAGES = ("fastapi", "uvicorn", "openai", "aiohttp", "prometheus_client")
CARD = "NVIDIA H200, 143771, 500, GPU-0"


def server_interpreter():
    """The same with what its HTTP server imports."""
    python = interpreter()
    with ALONE:
        wanted = [python, "-c", f"import {', '.join(SERVER_PACKAGES)}"]
        if subprocess.run(wanted, capture_output=True, check=False).returncode:
            subprocess.run([python, "-m", "pip", "install", "-q", *SERVER_PACKAGES], capture_output=True, check=True)
    return python


def emulated(folder, python):
    """Environment variables under which `turbopress serve` finds LMDeploy and a GPU, both in `folder`."""
    site, programs = folder / "site", folder / "bin"
    site.mkdir(parents=True)
    programs.mkdir()
    (site / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(PROGRAM)!r})\nimport ftc\n")
    told = f"PYTHONPATH={site} LD_LIBRARY_PATH={PROGRAM / 'lib'} FAKE_CC=90 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1"
    executable(programs / "python-lmdeploy", f'exec env {told} {python} "$@"')
    executable(programs / "nvidia-smi", f"echo '{CARD}'")
    return {"PATH": f"{programs}:{os.environ['PATH']}", "LMDEPLOY_PYTHON": str(programs / "python-lmdeploy")}


def executable(path, line):
    """A shell script of one line."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
