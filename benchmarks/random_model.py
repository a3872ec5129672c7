"""InternLM2 models of real shapes and random weights, for timing: `models`."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from host_memory import is_limited_to, run_limited
from safetensors.torch import save_file
from torch import Tensor

from compress.quantize.workers import ALONE

SHAPES = {  # hidden, intermediate, heads, kv heads, layers
    "1.8b": (2048, 8192, 16, 8, 24),
    "7b": (4096, 14336, 32, 8, 32),
    "20b": (6144, 16384, 48, 8, 48),
}
VOCAB = 92544
WRITTEN = "written.json"  # what a folder holds, once it holds all of it


@contextmanager
def models(args, workers=ALONE):
    """While this is open, `args.shapes` lie on `args.disk`; they stay there with `args.keep`.

    With `args.host_gib` the program runs once more, under this limit, when they do, and this one ends with it: written
    under the limit, a large model would wait for its own pages.
    """
    folders = [args.disk / f"random-{shape}" for shape in args.shapes]
    try:
        if workers.rank == 0:
            for shape, folder in zip(args.shapes, folders, strict=True):
                provide_model(folder, shape, args.layers)
        workers.wait()
        if args.host_gib and not is_limited_to(args.host_gib):
            forget(folders)
            raise SystemExit(run_limited(args.host_gib, [sys.executable, *sys.argv, "--keep"]))
        yield
    finally:
        if workers.rank == 0 and not args.keep:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)


def forget(folders):
    """Has the kernel drop what it remembers of the files: whoever reads them has them counted as its own."""
    for file in (file for folder in folders for file in folder.iterdir()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def provide_model(folder: Path, shape: str, num_layers: int | None = None) -> None:
    """A model of this shape in a folder: the one that another program left there, or a new one in its place."""
    said = json.dumps({"shape": shape, "layers": num_layers or SHAPES[shape][-1]})
    stamp = folder / WRITTEN
    if not stamp.exists() or stamp.read_text() != said:
        shutil.rmtree(folder, ignore_errors=True)
        write_model(folder, shape, num_layers)
        stamp.write_text(said)


def write_model(folder: Path, shape: str, num_layers: int | None = None) -> None:
    """A model in a file a layer; every layer has the same numbers, in a file of its own."""
    hidden, *_, every = SHAPES[shape]
    num_layers = num_layers or every
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(shape, num_layers)))
    layer, files = layer_tensors(shape), {}
    outer = {
        "model.tok_embeddings.weight": linear(VOCAB, hidden) * 20,
        "model.norm.weight": torch.ones(hidden).bfloat16(),
        "output.weight": linear(VOCAB, hidden),
    }
    named = {
        f"layer-{n}.safetensors": {f"model.layers.{n}.{k}": t for k, t in layer.items()} for n in range(num_layers)
    }
    for file, tensors in {"outer.safetensors": outer, **named}.items():
        save_file(tensors, folder / file)
        files |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def config(shape: str, num_layers: int) -> dict[str, object]:
    """InternLM2's config.json."""
    hidden, inter, heads, kv_heads, _ = SHAPES[shape]
    return {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False, "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inter, "num_hidden_layers": num_layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "rope_scaling": None, "max_position_embeddings": 32768, "vocab_size": VOCAB, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip


def layer_tensors(shape: str) -> dict[str, Tensor]:
    """A decoder layer under InternLM2's names."""
    hidden, inter, heads, kv_heads, _ = SHAPES[shape]
    return {
        "attention.wqkv.weight": linear((heads + 2 * kv_heads) * hidden // heads, hidden),
        "attention.wo.weight": linear(hidden, hidden),
        "feed_forward.w1.weight": linear(inter, hidden),
        "feed_forward.w3.weight": linear(inter, hidden),
        "feed_forward.w2.weight": linear(hidden, inter),
        "attention_norm.weight": torch.ones(hidden).bfloat16(),
        "ffn_norm.weight": torch.ones(hidden).bfloat16(),
    }


def linear(rows: int, columns: int) -> Tensor:
    """A random weight that keeps the size of its input, in bf16 on the host."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(rows, columns, device=device) / columns**0.5).bfloat16().cpu()


def operations(
    shape: str, tokens: int, length: int, feedback: bool, num_layers: int, trained: int = 0, looked: int = 0
) -> float:
    """Floating-point operations that calibration cannot do without: each model once, and its statistics.

    The rounded and, with feedback, the float model's forward pass; H = xᵀx of every site and, with feedback, the two
    products that say how far the models are apart. Searches and rounding are left out: they read H, not tokens. Where
    rounding is learned, so many tokens in sum are `trained` on (forward, the gradients of weights, and of inputs where
    a linear lies before them) and `looked` at, forward alone, to choose the step.
    """
    hidden, inter, heads, kv_heads, _ = SHAPES[shape]
    qkv = hidden * (heads + 2 * kv_heads) * (hidden // heads)
    weights = qkv + hidden * hidden + 3 * hidden * inter
    attention = 2 * length * hidden  # causal: half of two products of length × hidden
    forward = 2 * weights + attention
    grams = 2 * (3 * hidden**2 + inter**2)
    drift = grams + 2 * (hidden * hidden + hidden * inter)
    calibration = tokens * (forward * (1 + feedback) + grams + feedback * drift)
    training = trained * (3 * forward - 2 * qkv) + looked * forward
    return float(num_layers * (calibration + training))
