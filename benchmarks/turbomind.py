"""Does TurboMind, on a GPU, get from an artifact the numbers that we say it holds?

    python benchmarks/turbomind.py data/evaluation/windows.safetensors models/awq-w4 models/student-awq-w4 …

For each folder LMDeploy's TurboMind engine and our unpacked weights (float32) score the same held-out windows; the
table shows both mean NLLs, and how many of 32 greedy tokens agree. Needs lmdeploy 0.18 and a GPU it has kernels for.
Writes benchmarks/results/turbomind.json. Every folder has a process of its own: the engine keeps its memory.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "turbomind.json"
NUM_GREEDY = 32
NUM_PROMPT = 64


def unpacked_scores(folder: Path, tokens: torch.Tensor, prompt: list[int]) -> tuple[list[float], list[int]]:
    """Mean NLL of each window from the unpacked weights, and a greedy continuation of a prompt."""
    from compress.checkpoint.load import load_model

    model = load_model(folder, device="cuda")
    with torch.no_grad():
        losses = [model(x[None], labels=x[None]).loss.item() for x in tokens.cuda()]
        start = torch.tensor([prompt], device="cuda")
        whole = model.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return losses, whole[0, len(prompt) :].tolist()


def engine_scores(folder: Path, tokens: torch.Tensor, prompt: str, num_ids: int) -> tuple[list[float], list[int]]:
    """The same from TurboMind, which encodes the prompt itself, to `num_ids` tokens."""
    from lmdeploy import GenerationConfig, TurbomindEngineConfig, pipeline

    said = json.loads((folder / "config.json").read_text("utf8")).get("quantization_config") or {}
    # The folder says its format; block floats run in bfloat16 alone.
    dtype = "auto" if said.get("quant_method") == "fp8" else "float16"
    engine = TurbomindEngineConfig(cache_max_entry_count=0.2, session_len=1024, dtype=dtype)
    pipe = pipeline(str(folder), backend_config=engine, log_level="ERROR")
    losses = [float(loss) for loss in pipe.get_ppl(tokens.tolist())]
    config = GenerationConfig(max_new_tokens=NUM_GREEDY, do_sample=False, ignore_eos=True)
    answer = pipe(prompt, gen_config=config, do_preprocess=False)
    if answer.input_token_len != num_ids:
        raise SystemExit(f"{folder}: the engine read the prompt as {answer.input_token_len} tokens, not {num_ids}")
    return losses, list(answer.token_ids)


def measure(folder: Path, tokens: torch.Tensor) -> dict[str, Any]:
    """One row of the table."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.decode(tokens[-1, 1:NUM_PROMPT].tolist(), skip_special_tokens=True)
    ids = tokenizer(prompt)["input_ids"]
    ours, our_words = unpacked_scores(folder, tokens, ids)
    torch.cuda.empty_cache()
    theirs, their_words = engine_scores(folder, tokens, prompt, len(ids))
    nll, engine_nll = (sum(values) / len(values) for values in (ours, theirs))
    return {
        "model": folder.name,
        "nll_nats": nll,
        "engine_nll_nats": engine_nll,
        "difference_nats": engine_nll - nll,
        "greedy_agreement": sum(a == b for a, b in zip(our_words, their_words, strict=False)) / NUM_GREEDY,
        "device": torch.cuda.get_device_name(),
    }


def main(
    windows: Annotated[Path, typer.Argument(help="windows.safetensors of a corpus stage")],
    folders: Annotated[list[Path], typer.Argument(help="model folders")],
    out: Path = RESULT,
    alone: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measures every folder and writes the rows."""
    if alone:
        row = measure(folders[0], load_file(windows)["tokens"].long())
        print(f"ROW {json.dumps(row)}", flush=True)
        return
    rows = []
    for folder in folders:
        command = [sys.executable, __file__, str(windows), str(folder), "--alone"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [line.removeprefix("ROW ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not found:
            raise SystemExit(f"{folder}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        rows.append(json.loads(found[0]))
        print(json.dumps(rows[-1]), flush=True)
    out.write_text(json.dumps(rows, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    typer.run(main)
