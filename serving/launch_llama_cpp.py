"""Starts llama.cpp's own server on a GGUF file, in a process of its own: run as a program on a JSON value.

The API key comes from the environment, so no other user reads it in a process list; the server ends with whoever
started it, and on the signals that end programs. Nothing else of ours is imported.
"""

import ctypes
import json
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNINGS = 2  # of llama.cpp's levels of talking

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its `profile` would stand before the standard library's
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before the server's threads begin: they wait for us below
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    from xllamacpp import CommonParams, Server

    told = json.loads(sys.argv[1])
    params = CommonParams()
    params.model.path, params.model_alias = told["file"], {told["name"]}
    params.hostnames, params.port = [told["host"]], told["port"]
    params.cors_origins = f"http://{told['host']}:{told['port']}"  # no page of another origin may ask
    params.n_ctx, params.n_parallel, params.kv_unified = told["context"], told["sessions"], told["shared"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = told["threads"]
    params.ui = params.endpoint_slots = False  # slots show other people's prompts
    params.offline, params.warmup, params.fit_params, params.verbosity = True, False, False, WARNINGS
    if key := os.environ.pop("TURBOPRESS_API_KEY", None):
        params.api_keys = [key]
    try:
        server = Server(params)
    except RuntimeError:  # llama.cpp has said why on stderr
        sys.exit(1)
    signal.sigwait(SIGNALS)
    del server  # ends its threads
