"""Starts LMDeploy's command line in an interpreter that has it, which need not be ours.

Two things that its command line cannot do: the API key comes from the environment, so no other user reads it in a
process list, and the server ends with whoever started it. Only the standard library is used.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its `profile` would stand before the standard library's
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if key := os.environ.pop("TURBOPRESS_API_KEY", None):
        sys.argv.append(f"--api-keys={key}")  # one word: a key may begin with a dash
    from lmdeploy.cli import run

    run()
