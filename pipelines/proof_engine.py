"""The engine's side of a proof: LMDeploy in a process of its own, because it keeps its memory, asked on a job file."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.proof_ours import NUM_GREEDY, Asked, Numbers
from registry.conformance import Way
from serving.errors import ServingError
from serving.profile import EngineProfile
from serving.server import interpreter
from serving.shape import read_shape

ASKER = Path(__file__).parents[1] / "serving" / "ask_lmdeploy.py"


def engine_version() -> str:
    """LMDeploy and its version; refused where there is none."""
    python, told = interpreter(), "import importlib.metadata as m; print(m.version('lmdeploy'))"
    asked = subprocess.run([python, "-c", told], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ServingError(f"{python}: has no lmdeploy; pip install 'turbopress[lmdeploy]' there, or name another")
    return f"lmdeploy {asked.stdout.strip()}"


def profile(bits: int, tp: int) -> EngineProfile:
    """What a server would be told to serve in this way."""
    return EngineProfile(quant_policy=0 if bits == 16 else bits, tp=tp)  # type: ignore[arg-type]  # checked by pydantic


def engine_numbers(folder: Path, asked: Asked, way: Way, work: Path) -> Numbers | str:
    """The engine's numbers, or its last words; scores lie in files of `work` until the next call."""
    shape, job = read_shape(folder), work / "job.json"
    length = max(map(len, [*asked.windows, *asked.text_ids])) + NUM_GREEDY
    told: dict[str, Any] = {"model_format": shape.quant_method}
    told |= profile(way.kv_bits, way.tp).model_dump(include={"tp", "quant_policy"})
    told |= {"cache_max_entry_count": 0.2, "session_len": length, "max_batch_size": 16}
    told["dtype"] = "bfloat16" if shape.quant_method == "fp8" else "float16"  # fp8's kernels on Hopper have no float16
    values = {"folder": str(folder), "engine": told, "windows": asked.windows, "texts": asked.texts}
    job.write_text(json.dumps(values | {"greedy": NUM_GREEDY}), "utf8")
    job.with_suffix(".answer").unlink(missing_ok=True)
    done = subprocess.run([interpreter(), str(ASKER), str(job)], capture_output=True, text=True, check=False)
    if not job.with_suffix(".answer").exists():
        return f"the engine ended with status {done.returncode}: {_last_words(done.stdout + done.stderr)}"
    answer = json.loads(job.with_suffix(".answer").read_text("utf8"))
    # The vocabulary may be padded, to be split between GPUs.
    logits = [np.load(work / name, mmap_mode="r")[:, : shape.vocab] for name in answer["logits"]]
    lengths, scored = list(map(len, asked.text_ids)), list(map(len, logits))
    if not lengths == answer["input_tokens"] == scored:
        return f"the engine read the texts as {answer['input_tokens']} tokens and scored {scored}, not {lengths}"
    return Numbers(answer["nll_nats"], answer["greedy"], logits)


def _last_words(said: str) -> str:
    """The last line that names an error, or the last line."""
    lines = [line for line in said.splitlines() if line.strip()] or ["no word"]
    telling = [line for line in lines if "Error" in line or "Check failed" in line]
    return (telling or lines)[-1].strip()
