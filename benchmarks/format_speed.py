"""How fast does TurboMind serve each weight format on this GPU, and how much memory is left beside the weights?

    python benchmarks/format_speed.py models/base                      # InternLM2-1.8B's shape
    python benchmarks/format_speed.py models/base --shape 7b --formats fp16 awq-128 fp8

The weights are random bits in each format's shapes, made here: speed does not depend on their values. The folder gives
the tokenizer. For each format and each kind of KV cache: tokens a second with one request and with many at once, and
the GPU memory that was taken while only the weights were loaded. Needs lmdeploy 0.18 and a GPU; nothing of ours is
imported. Writes benchmarks/results/format_speed.json. Every run has a process of its own: the engine keeps its memory.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

RESULT = Path(__file__).parent / "results" / "format_speed.json"
SHAPES = {  # hidden, intermediate, layers, heads, kv heads; heads of 128
    "1.8b": (2048, 8192, 24, 16, 8),
    "1.8b-18-layers": (2048, 8192, 18, 16, 8),  # a quarter of the decoder pruned
    "7b": (4096, 14336, 32, 32, 8),
}
QUANTIZATION = {
    "fp16": None,
    "awq-128": {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True},
    "ct-32": 32,
    "ct-128": 128,
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
NUM_IN, NUM_OUT, NUM_AT_ONCE = 128, 256, 64


def quantization_config(name):
    said = QUANTIZATION[name]
    if not isinstance(said, int):
        return said
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": said}
    group = {"targets": ["Linear"], "format": "pack-quantized", "weights": weights}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


def words(rows, columns):
    return torch.randint(-(2**31), 2**31 - 1, (rows, columns), dtype=torch.int32)


def linear(name, rows, columns):
    """The stored tensors of one random linear."""
    small = 0.01 / columns**0.5
    if name == "fp16":
        return {"weight": (torch.randn(rows, columns) * small).half()}
    if name == "fp8":
        scales = torch.full((rows // 128, columns // 128), small)
        return {"weight": torch.randn(rows, columns).to(torch.float8_e4m3fn), "weight_scale_inv": scales}
    if name == "awq-128":
        scales = torch.full((columns // 128, rows), small).half()
        return {"qweight": words(columns, rows // 8), "qzeros": words(columns // 128, rows // 8), "scales": scales}
    groups = columns // QUANTIZATION[name]
    return {
        "weight_packed": words(rows, columns // 8),
        "weight_scale": torch.full((rows, groups), small).half(),
        "weight_zero_point": words(rows // 8, groups),
    }


def write_model(folder, name, shape, tokenizer):
    """An InternLM2 of random weights."""
    hidden, inter, layers, heads, kv_heads = SHAPES[shape]
    vocab, dtype = 92544, torch.bfloat16 if name == "fp8" else torch.float16
    tensors = {
        "model.tok_embeddings.weight": torch.randn(vocab, hidden).to(dtype),
        "output.weight": (torch.randn(vocab, hidden) / hidden**0.5).to(dtype),
        "model.norm.weight": torch.ones(hidden, dtype=dtype),
    }
    sizes = {
        "attention.wqkv": ((heads + 2 * kv_heads) * 128, hidden),
        "attention.wo": (hidden, heads * 128),
        "feed_forward.w1": (inter, hidden),
        "feed_forward.w3": (inter, hidden),
        "feed_forward.w2": (hidden, inter),
    }
    for n in range(layers):
        for module, (rows, columns) in sizes.items():
            stored = linear(name, rows, columns)
            tensors |= {f"model.layers.{n}.{module}.{part}": tensor for part, tensor in stored.items()}
        for norm in ("attention_norm", "ffn_norm"):
            tensors[f"model.layers.{n}.{norm}.weight"] = torch.ones(hidden, dtype=dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_size": hidden,
        "intermediate_size": inter, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    said = quantization_config(name)
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": said} if said else {})))
    for file in TOKENIZER_FILES:
        if (tokenizer / file).is_file():
            shutil.copy(tokenizer / file, folder / file)
    return sum(t.numel() * t.element_size() for t in tensors.values())


def measure(folder, kv):
    """Tokens a second at one request and at many."""
    from lmdeploy import GenerationConfig, TurbomindEngineConfig, pipeline

    free = torch.cuda.mem_get_info()[0]
    engine = TurbomindEngineConfig(
        quant_policy=kv, cache_max_entry_count=0.3, session_len=2048, max_batch_size=128, max_prefill_token_num=8192
    )
    pipe = pipeline(str(folder), backend_config=engine, log_level="ERROR")
    taken = free - torch.cuda.mem_get_info()[0]
    pieces = [
        pipe.async_engine.tokenizer.decode([10 + (7 * n + i) % 90 for i in range(NUM_IN)]) for n in range(NUM_AT_ONCE)
    ]

    def speed(prompts, tokens):
        config = GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        start = time.perf_counter()
        answers = pipe(prompts, gen_config=config, do_preprocess=False)
        return sum(answer.generate_token_len for answer in answers) / (time.perf_counter() - start)

    speed(pieces[:1], 8)
    speed(pieces, 8)
    return {
        "tokens_s_batch_1": speed(pieces[:1], NUM_OUT),
        f"tokens_s_batch_{NUM_AT_ONCE}": speed(pieces, NUM_OUT),
        "taken_bytes_with_cache": taken,
        "dtype": pipe.backend_config.dtype,
        "device": torch.cuda.get_device_name(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a folder with tokenizer.json")
    parser.add_argument("--shape", choices=SHAPES, default="1.8b")
    parser.add_argument("--formats", nargs="+", choices=QUANTIZATION, default=list(QUANTIZATION))
    parser.add_argument(
        "--kv", nargs="+", type=int, choices=(0, 4, 8), default=[0, 8], help="bits of the cache, 0 is 16"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.alone:
        print("ROW " + json.dumps(measure(said.alone, said.kv[0])), flush=True)
        return
    rows = []
    for name in said.formats:
        with tempfile.TemporaryDirectory() as home:
            size_bytes = write_model(Path(home) / name, name, said.shape, said.tokenizer)
            for kv in said.kv:
                command = [sys.executable, __file__, str(said.tokenizer), "--kv", str(kv), "--alone", f"{home}/{name}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                found = [line.removeprefix("ROW ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
                if not found:
                    raise SystemExit(f"{name}, kv {kv}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
                row = {"format": name, "shape": said.shape, "kv_bits": kv or 16, "weight_bytes": size_bytes}
                rows.append(row | json.loads(found[0]))
                print(json.dumps(rows[-1]), flush=True)
    said.out.write_text(json.dumps(rows, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    main()
