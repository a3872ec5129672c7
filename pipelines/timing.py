"""How fast a stored model writes on this machine, and the memory that it takes, in a process of its own.

    python -m pipelines.timing FOLDER 1 8 64      # prints one JSON value

Through transformers a quantized model runs on its unpacked float32 weights: this tells what the smaller architecture
gains, and nothing about 4-bit kernels. Those are LMDeploy's, and have an engine and a column of their own.
"""

import json
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from compress.checkpoint.load import load_model
from pipelines.stage import device, one_line_errors

PROMPT_TOKENS, WRITTEN_TOKENS, ROUNDS = 64, 64, 3
ENGINE = "transformers, float32"


def main(folder: Path, batches: list[int]) -> None:
    """Prints tokens a second at every batch, the median of rounds with its slowest and fastest, and the peak memory."""
    place = device()
    model = load_model(folder, device=place)
    measured = {str(batch): _speed(model, batch) for batch in batches}
    on_gpu = place.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    machine = torch.cuda.get_device_name() if on_gpu else f"{_processor()}, {torch.get_num_threads()} threads"
    print(json.dumps({"engine": ENGINE, "machine": machine, "batches": measured, "peak_bytes": peak}))


def _speed(model: PreTrainedModel, batch: int) -> dict[str, float]:
    _write(model, batch, 2)  # what is set up once is set up
    rates = sorted(batch * WRITTEN_TOKENS / _write(model, batch, WRITTEN_TOKENS) for _ in range(ROUNDS))
    median = statistics.median(rates)
    return {"tokens_per_s": median, "slowest_tokens_per_s": rates[0], "fastest_tokens_per_s": rates[-1]}


@torch.no_grad()
def _write(model: PreTrainedModel, batch: int, count: int) -> float:
    """Seconds for so many tokens after a prompt, in each row of the batch."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, model.config.vocab_size, (batch, PROMPT_TOKENS), generator=generator).to(model.device)
    config = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
    start = time.perf_counter()
    model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _processor() -> str:
    """The processor's own name where Linux tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text("utf8", errors="replace").splitlines() if told.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    with one_line_errors():
        main(Path(sys.argv[1]), [int(batch) for batch in sys.argv[2:]])
