"""Asks LMDeploy's engine for numbers, in an interpreter that has it: run as a program on a job file.

The job names a folder, what the engine is told, windows of token ids and texts. The answer has each window's mean
negative log-likelihood, how each text goes on, and the files beside the job in which the scores of every token of each
text over the whole vocabulary lie. Only LMDeploy, what it needs itself (torch and numpy), and the standard library are
used, so any environment with LMDeploy will do.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def ask(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The engine's numbers; the scores lie in files of `folder`."""
    import numpy as np  # noqa: PLC0415 - the caller has set the path
    from lmdeploy import GenerationConfig, TurbomindEngineConfig, pipeline  # noqa: PLC0415

    pipe = pipeline(job["folder"], backend_config=TurbomindEngineConfig(**job["engine"]), log_level="ERROR")
    every = GenerationConfig(max_new_tokens=1, do_sample=False, ignore_eos=True, output_logits="all")
    greedy = GenerationConfig(max_new_tokens=job["greedy"], do_sample=False, ignore_eos=True)
    answer: dict[str, Any] = {
        "nll_nats": [float(loss) for loss in pipe.get_ppl(job["windows"])],
        "logits": [f"engine-{number}.npy" for number in range(len(job["texts"]))],
        "greedy": [],
        "input_tokens": [],
    }
    for text, name in zip(job["texts"], answer["logits"], strict=True):
        read = pipe(text, gen_config=every, do_preprocess=False)
        answer["input_tokens"].append(read.input_token_len)
        np.save(folder / name, read.logits[: read.input_token_len].float().cpu().numpy())
    for text in job["texts"]:
        answer["greedy"].append(list(pipe(text, gen_config=greedy, do_preprocess=False).token_ids))
    return answer


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its `profile` would stand before the standard library's
    place = Path(sys.argv[1])
    told = json.loads(place.read_text("utf8"))
    place.with_suffix(".answer").write_text(json.dumps(ask(told, place.parent)), "utf8")
    os._exit(0)  # the engine's threads need no farewell
