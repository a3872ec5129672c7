"""One reading of a GPU's memory, in a process of its own: run by benchmarks/memory.py with the interpreter of LMDeploy.

It imports what it needs, says READY, and touches the GPU once a line comes: so the next reading's imports, which take
longer than a reading, are over before this one's memory is free again. Only LMDeploy and the standard library are used.
"""

import json
import os
import subprocess
import sys

ASKED = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits", "--id=0")


def card():
    """Name, size and what is used of the first GPU, in MiB."""
    name, total, used = subprocess.run(ASKED, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return name, int(total), int(used)


def read(job):
    """The card before and after a model was loaded and has said something."""
    from lmdeploy import GenerationConfig, TurbomindEngineConfig, pipeline

    print("READY", flush=True)
    engine = json.loads(sys.stdin.readline())
    name, total, before = card()
    pipe = pipeline(job["folder"], backend_config=TurbomindEngineConfig(**engine), log_level="ERROR")
    greedy = GenerationConfig(max_new_tokens=64, do_sample=False)
    said = pipe("Once upon a time", gen_config=greedy, do_preprocess=False).text
    return {"device": name, "total_mib": total, "before_mib": before, "after_mib": card()[2], "answer": said[:60]}


if __name__ == "__main__":
    print("READ " + json.dumps(read(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # the engine's threads need no farewell
