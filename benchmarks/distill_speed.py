"""Seconds a step of distillation at a real shape, and the share of the card's bf16 peak that its products reach.

    python benchmarks/distill_speed.py --shape 1.8b --batch 4 --length 2048 --compile      # one GPU
    accelerate launch --num_processes 2 benchmarks/distill_speed.py --batch 8 …            # several
    python benchmarks/distill_speed.py --shape tiny --steps 3                              # a look on a CPU

Teacher and student have random weights; the student is the teacher without a quarter of its layers. Counted are the
model's own operations: 6 a weight and token for the student, 2 for the teacher, heads and causal attention included,
nothing that is computed twice. The peak is a large product's measured rate. Needs torch, transformers, accelerate,
pydantic and jaxtyping; writes flat rows to --out.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compress.distill import fused
from compress.distill.recipe import DistillRecipe
from compress.distill.train import distill_

SHAPES = {  # hidden, intermediate, heads, kv heads, layers, vocabulary
    "tiny": (64, 128, 2, 1, 4, 1000),
    "1.8b": (2048, 8192, 16, 8, 24, 92544),
    "7b": (4096, 14336, 32, 8, 32, 92544),
}


def main() -> None:
    args = arguments()
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = f"cuda:{local}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(local)
    if args.chunk_mib:
        fused.CHUNK_BYTES = dict.fromkeys(fused.CHUNK_BYTES, args.chunk_mib * 2**20)
    peak = product_rate(device)
    _, _, _, _, layers, vocabulary = SHAPES[args.shape]
    kept = layers - layers // 4
    student = build(args.shape, kept, torch.float32, device)
    teacher = build(args.shape, layers, torch.bfloat16, device)
    tokens = torch.randint(0, vocabulary, (4 * args.batch, args.length), generator=torch.Generator().manual_seed(0))
    clock = Clock(device, args.warmup)
    distill_(student, teacher, tokens, recipe(args), clock)
    if local == 0:
        report(args, clock, peak, kept)


def report(args: argparse.Namespace, clock: "Clock", peak: float, kept: int) -> None:
    """Prints a row and puts it into the file."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    seconds, tokens = clock.step_s(), args.batch * args.length
    done = operations(args.shape, kept, SHAPES[args.shape][4], args.length) * tokens / seconds / processes
    cuda = torch.cuda.is_available()
    row = {
        "shape": args.shape, "student_layers": kept, "teacher_layers": SHAPES[args.shape][4], "batch": args.batch,
        "length": args.length, "accumulate": args.accumulate, "processes": processes, "compile": args.compile,
        "checkpointing": args.checkpointing, "precision": args.precision, "loss": args.loss, "steps": args.steps,
        "step_s": seconds, "tokens_per_s": tokens / seconds, "flops_per_s_per_device": done,
        "peak_flops_per_s": peak, "share_of_peak": done / peak,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else rss(),
        "first_step_s": clock.first_s, "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
    }  # fmt: skip
    rows = json.loads(args.out.read_text("utf8")) if args.out and args.out.exists() else []
    print(json.dumps(row, indent=2))
    if args.out:
        args.out.write_text(json.dumps([*rows, row], indent=2) + "\n", "utf8")


class Clock:
    """A progress that notes when steps end; the device is waited for only around what is timed."""

    def __init__(self, device: str, warmup: int) -> None:
        self.device, self.warmup = device, warmup
        self.first_s = self.start = self.end = 0.0
        self.timed = 0

    def __call__(self, items, what):
        began = self.now()
        for number, item in enumerate(items):
            if number == self.warmup:
                self.start = self.now()
            yield item
            if number == 0:
                self.first_s = self.now() - began
        self.end, self.timed = self.now(), len(items) - self.warmup

    def step_s(self) -> float:
        return (self.end - self.start) / self.timed

    def now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def operations(shape: str, student: int, teacher: int, length: int) -> float:
    """Of a token: student three times forward, teacher once."""
    hidden, inter, heads, kv_heads, _, vocabulary = SHAPES[shape]
    layer = hidden * (heads + 2 * kv_heads) * (hidden // heads) + hidden * hidden + 3 * hidden * inter
    forward = [2 * (n * layer + vocabulary * hidden) + n * 2 * length * hidden for n in (student, teacher)]
    return 3.0 * forward[0] + forward[1]  # causal attention: half of two products of length × hidden


def product_rate(device: str) -> float:
    """Operations a second of a large bf16 product of random numbers."""
    size = 8192 if device != "cpu" else 512
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    clock = Clock(device, 0)
    for _ in range(10):
        a @ b
    start = clock.now()
    for _ in range(30):
        a @ b
    return 30 * 2 * size**3 / (clock.now() - start)


def build(shape: str, layers: int, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """InternLM2's shape as the stock class, random weights made on the device."""
    hidden, inter, heads, kv_heads, _, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inter, num_attention_heads=heads, num_key_value_heads=kv_heads,
        num_hidden_layers=layers, vocab_size=vocabulary, rope_theta=1e6, tie_word_embeddings=False,
        attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    torch.manual_seed(layers)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def recipe(args: argparse.Namespace) -> DistillRecipe:
    loss = [{"kind": kind} for kind in args.loss.split(",")]
    return DistillRecipe.model_validate({
        "steps": args.steps, "batch": args.batch, "accumulate": args.accumulate, "learning_rate": 1e-5,
        "warmup_steps": 1, "precision": args.precision, "checkpointing": args.checkpointing, "compile": args.compile,
        "loss": loss if len(loss) > 1 else loss[0],
    })  # fmt: skip


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.8b")
    parser.add_argument("--batch", type=int, default=4, help="windows an update, over all processes")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--warmup", type=int, default=None, help="steps that are not timed")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--loss", default="forward_kl", help="kinds, with commas")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--chunk-mib", type=int, default=None, help="float32 logits of a chunk")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    args.warmup = min(10, args.steps // 2) if args.warmup is None else args.warmup
    return args


if __name__ == "__main__":
    main()
