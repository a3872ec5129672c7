"""A program of ours in a process of its own, whose last line is what it found."""

import json
import subprocess
import sys
from typing import Any

from pipelines.params import ParamsError


def found_by(program: str, *arguments: object, refusal: str) -> Any:
    """The JSON value that `python -m PROGRAM` prints last; what it refuses is refused here, behind `refusal`."""
    command = [sys.executable, "-m", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ParamsError(f"{refusal}: {last.removeprefix('turbopress: ')}")
    return json.loads(done.stdout.splitlines()[-1])
