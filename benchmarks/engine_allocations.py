"""What LMDeploy's TurboMind allocates, asked of its own library on a machine without a GPU; the planner is held to it.

    python benchmarks/engine_allocations.py --check ../shared/turbomind_check --python PYTHON

The library runs over an emulated CUDA runtime (CHECK/check.py, by an interpreter PYTHON that has LMDeploy). A shim that
is compiled here (it needs cc) counts every allocation, so weights, KV cache and workspace are the engine's own numbers;
what CUDA itself takes on a GPU is not seen. Writes benchmarks/results/engine_allocations.json; a test compares the
planner with it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "engine_allocations.json"
CARD_BYTES = 24 * 2**30
CASES: list[dict[str, Any]] = [
    {},
    {"max_batch_size": 256},
    {"max_batch_size": 1024},
    {"max_prefill_token_num": 4096},
    {"session_len": 4096},
    {"session_len": 131072},
    {"quant_policy": 8},
    {"cache_max_entry_count": 0.5},
    {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 1},
    {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 2},
    {"hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 24},
    {"hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 24}
    | {"quant_policy": 4},
]
MODEL = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 16}
MODEL |= {"num_key_value_heads": 8, "vocab_size": 92544, "max_position_embeddings": 32768, "torch_dtype": "float16"}
ENGINE = {"session_len": 32768, "max_batch_size": 128, "max_prefill_token_num": 8192, "quant_policy": 0}
ENGINE |= {"cache_max_entry_count": 0.1}
SHIM = r"""
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static size_t live; static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *taken(size_t n) {
  void *p = NULL; size_t m = (n + 511) & ~511UL;
  if (posix_memalign(&p, 512, m ? m : 512)) return NULL;
  if (m < (64UL << 20)) memset(p, 0, m);
  pthread_mutex_lock(&lock); live += malloc_usable_size(p);
  FILE *log = fopen(getenv("COUNT_LOG"), "a");
  if (log) { fprintf(log, "%zu %zu\n", n, live); fclose(log); }
  pthread_mutex_unlock(&lock); return p;
}
static int given(void *p) {
  pthread_mutex_lock(&lock); if (p) live -= malloc_usable_size(p); pthread_mutex_unlock(&lock); free(p); return 0;
}
int cudaMalloc(void **p, size_t n) { return (*p = taken(n)) ? 0 : 2; }
int cudaMallocAsync(void **p, size_t n, void *stream) { return (*p = taken(n)) ? 0 : 2; }
int cudaMallocFromPoolAsync(void **p, size_t n, void *pool, void *stream) { return (*p = taken(n)) ? 0 : 2; }
int cudaFree(void *p) { return given(p); }
int cudaFreeAsync(void *p, void *stream) { return given(p); }
int cudaMemGetInfo(size_t *free, size_t *total) {
  *total = strtoul(getenv("COUNT_CARD"), NULL, 10); *free = *total - live; return 0;
}
"""


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """A float InternLM2 of these sizes, its weights random, its tokenizer one of words."""
    sys.path.insert(0, str(ROOT / "tests"))
    from safetensors.torch import save_file
    from tiny import CONFIG, internlm2_tensors
    from tiny_repository import write_source

    write_source(folder)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}  # or the tokenizer's code of this model_type is asked for
    said = json.loads((folder / "tokenizer_config.json").read_text("utf8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(said | plain), "utf8")
    config = {key: value for key, value in (CONFIG | sizes).items() if key != "auto_map"}
    (folder / "config.json").write_text(json.dumps(config), "utf8")
    tensors = {name: tensor.half() for name, tensor in internlm2_tensors(config).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def measure(case: dict[str, Any], check: Path, python: Path, work: Path) -> dict[str, Any]:
    """Bytes of weights, cache and workspace, and the block and slab that the engine chose."""
    sizes = {key: case.get(key, value) for key, value in MODEL.items()}
    engine = {key: case.get(key, value) for key, value in ENGINE.items()}
    folder, log = work / "model", work / "count.log"
    write_model(folder, sizes)
    log.unlink(missing_ok=True)
    told = {"LD_PRELOAD": str(work / "shim.so"), "LD_LIBRARY_PATH": str(check / "lib"), "FAKE_CC": "80"}
    told |= {"COUNT_LOG": str(log), "COUNT_CARD": str(CARD_BYTES), "TM_LOG_LEVEL": "INFO", "HF_HUB_OFFLINE": "1"}
    asked = ", ".join(f"{key}={value}" for key, value in engine.items())
    command = [python, check / "check.py", folder, "--child", "--cc", "80", "--engine", asked]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if '"ok": true' not in said:
        raise SystemExit(f"{case}: {said[-3000:]}")
    rows = [(int(size), int(live)) for size, live in (line.split() for line in log.read_text().splitlines())]
    at = max(range(len(rows)), key=lambda n: rows[n][0])  # the cache is the largest
    cache, after = rows[at]
    slab, block, count = map(int, re.search(r"slab_size (\d+), object_size (\d+), object_count (\d+)", said).groups())
    return {
        "model": sizes,
        "engine": engine,
        "weights_bytes": after - cache,
        "kv_cache_bytes": cache,
        "workspace_bytes": max(live for _, live in rows) - after,
        "block_bytes": block,
        "slab_bytes": slab,
        "slab_blocks": count,
    }


def main(
    check: Annotated[Path, typer.Option(help="the folder of check.py and the emulated runtime")],
    python: Annotated[Path, typer.Option(help="an interpreter that has LMDeploy 0.18")],
) -> None:
    """Measures every case and writes the rows."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "shim.c").write_text(SHIM)
        subprocess.run(["cc", "-w", "-O1", "-fPIC", "-shared", "-o", work / "shim.so", work / "shim.c"], check=True)
        for case in CASES:
            rows.append(measure(case, check.resolve(), python, work))
            print(json.dumps(rows[-1]), flush=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    typer.run(main)
