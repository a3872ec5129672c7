"""An LMDeploy that computes on any machine: what a proof asks of the engine, answered by our own forward pass.

Its scores are off by random numbers of the size STAND_IN_NOISE, as those of another arithmetic would be.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from lmdeploy_environment import executable
from transformers import AutoTokenizer, DynamicCache

from compress.checkpoint.load import load_model
from compress.evaluate.kv_cache import quantized_cache

TESTS = Path(__file__).parent


@dataclass
class TurbomindEngineConfig:
    tp: int
    quant_policy: int
    session_len: int
    model_format: str | None
    cache_max_entry_count: float
    max_batch_size: int
    dtype: str


@dataclass
class GenerationConfig:
    max_new_tokens: int
    do_sample: bool
    ignore_eos: bool
    output_logits: str | None = None


@dataclass
class Response:
    input_token_len: int
    token_ids: list[int]
    logits: torch.Tensor


class Pipeline:
    """Answers one text at a time."""

    def __init__(self, folder: str, config: TurbomindEngineConfig) -> None:
        self.model, self.tokenizer = load_model(Path(folder)), AutoTokenizer.from_pretrained(folder)
        self.bits = config.quant_policy
        self.noise, self.draw = float(os.environ["STAND_IN_NOISE"]), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def scores(self, ids, cache):
        logits = self.model(torch.tensor([ids]), None, None, cache, use_cache=True).logits[0]
        return logits + self.noise * torch.randn(logits.shape, generator=self.draw)

    def get_ppl(self, windows):
        scored = [(self.scores(ids, self.cache())[:-1], torch.tensor(ids[1:])) for ids in windows]
        return [torch.nn.functional.cross_entropy(*pair).item() for pair in scored]

    def cache(self):
        return quantized_cache(self.bits) if self.bits else DynamicCache()

    def __call__(self, text, gen_config, do_preprocess):
        assert (gen_config.ignore_eos, gen_config.do_sample, do_preprocess) == (True, False, False)
        ids, cache = self.tokenizer(text)["input_ids"], self.cache()
        read = logits = self.scores(ids, cache)
        said = [int(logits[-1].argmax())]
        while len(said) < gen_config.max_new_tokens:
            logits = self.scores(said[-1:], cache)
            said.append(int(logits[-1].argmax()))
        return Response(len(ids), said, read)


def pipeline(folder, backend_config, log_level):
    return Pipeline(folder, backend_config)


def stand_in(folder, python, num_gpus=1, noise=0.0):
    """Environment variables under which a proof finds this engine and so many GPUs, both in `folder`."""
    site, programs = folder / "site", folder / "bin"
    for place in (site / "lmdeploy", site / "lmdeploy-0.18.0.dist-info", programs):
        place.mkdir(parents=True, exist_ok=True)
    (site / "lmdeploy" / "__init__.py").write_text("from stand_in_lmdeploy import *\n")
    (site / "lmdeploy-0.18.0.dist-info" / "METADATA").write_text("Name: lmdeploy\nVersion: 0.18.0\n")
    told = f"PYTHONPATH={site}:{TESTS}:{TESTS.parent} STAND_IN_NOISE={noise} OMP_NUM_THREADS=1"
    executable(programs / "python-lmdeploy", f'exec env {told} {python} "$@"')
    executable(programs / "nvidia-smi", "\n".join(f"echo 'NVIDIA H200, 143771, 500, GPU-{n}'" for n in range(num_gpus)))
    return {"PATH": f"{programs}:{os.environ['PATH']}", "LMDEPLOY_PYTHON": str(programs / "python-lmdeploy")}
