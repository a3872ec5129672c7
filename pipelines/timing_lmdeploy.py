"""How fast LMDeploy's TurboMind writes from a stored model on this machine's GPU; the counterpart of `timing`.

    python -m pipelines.timing_lmdeploy FOLDER 1 8 64      # or, with nothing of ours installed: python THIS_FILE …

Prints one JSON value. The engine's memory is what the GPU has less of once it has answered, its KV cache included.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

WRITTEN_TOKENS, ROUNDS = 64, 3
PROMPT = "one " * 62  # about as many tokens as the other engine is given
CACHE_SHARE = 0.2  # of the free memory, for the KV cache


def main(folder: Path, batches: list[int]) -> None:
    """Prints tokens a second at every batch, the median of rounds with its slowest and fastest, and the memory."""
    import lmdeploy  # noqa: PLC0415 - an extra, and minutes to install
    import torch  # noqa: PLC0415

    before, _ = torch.cuda.mem_get_info()
    quantization = json.loads((folder / "config.json").read_text("utf8")).get("quantization_config", {})
    engine = lmdeploy.TurbomindEngineConfig(
        model_format=quantization.get("quant_method"), cache_max_entry_count=CACHE_SHARE, session_len=1024,
        max_batch_size=max(batches), dtype="float16",
    )  # fmt: skip
    pipe = lmdeploy.pipeline(str(folder), backend_config=engine, log_level="ERROR")
    config = lmdeploy.GenerationConfig(max_new_tokens=WRITTEN_TOKENS, do_sample=False, ignore_eos=True)
    measured = {str(batch): _speed(pipe, config, batch) for batch in batches}
    after, _ = torch.cuda.mem_get_info()
    name = f"lmdeploy {lmdeploy.__version__}, TurboMind"
    machine = torch.cuda.get_device_name()
    print(json.dumps({"engine": name, "machine": machine, "batches": measured, "peak_bytes": before - after}))


def _speed(pipe: Any, config: Any, batch: int) -> dict[str, float]:
    _rate(pipe, config, batch)  # what is set up once is set up
    rates = sorted(_rate(pipe, config, batch) for _ in range(ROUNDS))
    median = statistics.median(rates)
    return {"tokens_per_s": median, "slowest_tokens_per_s": rates[0], "fastest_tokens_per_s": rates[-1]}


def _rate(pipe: Any, config: Any, batch: int) -> float:
    start = time.perf_counter()
    answers = pipe([PROMPT] * batch, gen_config=config, do_preprocess=False)
    elapsed_s = time.perf_counter() - start
    return float(sum(answer.generate_token_len for answer in answers) / elapsed_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(batch) for batch in sys.argv[2:]])
