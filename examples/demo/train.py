"""Trains the demo base: a Llama of 9.4 million parameters, from nothing, in about two minutes of one GPU.

    python examples/demo/train.py TRAIN.jsonl.xz tokenizer.json examples/demo/text/evaluation.jsonl OUT
    python examples/demo/train.py … --tiny     # a look on a CPU: a few steps of a two-layer model

There are 9.6 million different tokens for 9.4 million parameters, so the text is read nine times, each time in a new
order. One document in a hundred is kept back and its loss decides which checkpoint stays: rereading would show there
first. InternLM2 is Llama with other names, so the stock class is trained and make_base.py writes the names.

Needs torch, transformers, tokenizers, safetensors and typer, nothing of turbopress.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tokenizers
import torch
import transformers
import typer
from documents import Document, read_documents
from measure import continuations, held_out
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

END = 2  # </s>
SHAPE: dict[str, Any] = {
    "vocab_size": 6144,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Recipe:
    """How it is trained; the learning rate rises for `warmup_steps`, then falls along a cosine to `final_share`."""

    epochs: int = 9
    window: int = 1024
    batch: int = 64
    learning_rate: float = 2e-3
    final_share: float = 0.1
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    evaluate_every: int = 100
    seed: int = 0


TINY_SHAPE = {**SHAPE, "num_hidden_layers": 2}
TINY_RECIPE = Recipe(epochs=1, window=128, batch=4, warmup_steps=10, evaluate_every=20)


@dataclass(frozen=True)
class Progress:
    """Where training stands; losses in nats a token."""

    step: int
    loss: float
    validation_loss: float
    elapsed_s: float


def encode(documents: list[Document], tokenizer: Tokenizer) -> list[Tensor]:
    """Returns each document's tokens: its BOS, its text, </s>."""
    encodings = tokenizer.encode_batch([document.text for document in documents])
    return [torch.tensor([*encoding.ids, END], dtype=torch.int32) for encoding in encodings]


def windows(documents: list[Tensor], length: int) -> Tensor:
    """Returns the documents laid end to end and cut into windows (count, length); the rest of the last is lost."""
    stream = torch.cat(documents)
    return stream[: len(stream) // length * length].view(-1, length)


def batches(documents: list[Tensor], recipe: Recipe) -> Iterator[Tensor]:
    """Yields the batches (batch, window) of one epoch after the other, each with its documents in a new order."""
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(documents), generator=generator).tolist()
        rows = windows([documents[n] for n in order], recipe.window)
        yield from rows[: len(rows) // recipe.batch * recipe.batch].split(recipe.batch)


def num_steps(documents: list[Tensor], recipe: Recipe) -> int:
    """Returns how many batches there are."""
    num_windows = sum(map(len, documents)) // recipe.window
    return recipe.epochs * (num_windows // recipe.batch)


def loss_nats(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Returns the mean loss of windows (batch, window), on a GPU in bf16 arithmetic."""
    rows = rows.to(model.device, torch.long)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        logits = model(input_ids=rows, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, rows: Tensor, batch: int) -> float:
    """Returns the mean loss of all whole batches of the windows kept back."""
    whole = rows[: max(1, len(rows) // batch) * batch]
    return sum(loss_nats(model, part).item() * len(part) for part in whole.split(batch)) / len(whole)


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Returns AdamW, which lets matrices decay and norms alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    fused = model.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=fused)


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """Returns the share of the learning rate that this step takes."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    return recipe.final_share + (1 - recipe.final_share) * (1 + math.cos(math.pi * done)) / 2


def train_(
    model: LlamaForCausalLM, documents: list[Tensor], kept_back: Tensor, recipe: Recipe
) -> tuple[list[Progress], dict[str, Tensor]]:
    """Trains the model; returns the losses on the way and the weights that did best on the windows kept back."""
    optimizer, steps = make_optimizer(model, recipe), num_steps(documents, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, recipe))
    history: list[Progress] = []
    best: dict[str, Tensor] = {}
    started_at = time.monotonic()
    for step, rows in enumerate(batches(documents, recipe), 1):
        loss = loss_nats(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % recipe.evaluate_every == 0 or step == steps:
            checked = validation_loss(model, kept_back, recipe.batch)
            history.append(Progress(step, loss.item(), checked, time.monotonic() - started_at))
            report(history[-1], steps, recipe)
            if checked == min(entry.validation_loss for entry in history):
                best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return history, best


def report(progress: Progress, steps: int, recipe: Recipe) -> None:
    """Prints where training stands."""
    speed = progress.step * recipe.batch * recipe.window / progress.elapsed_s
    losses = f"loss {progress.loss:.3f}  validation {progress.validation_loss:.3f}"
    print(f"step {progress.step}/{steps}  {losses}  {progress.elapsed_s:.0f} s  {speed:,.0f} tokens/s", flush=True)


def make_model(shape: dict[str, Any], device: torch.device) -> LlamaForCausalLM:
    """Returns a fresh model in float32."""
    rope = {"rope_theta": shape["rope_theta"], "rope_type": "default"}
    fields = {key: value for key, value in shape.items() if key != "rope_theta"}
    return LlamaForCausalLM(LlamaConfig(**fields, rope_parameters=rope, attn_implementation="sdpa")).to(device)


def compile_layers_(model: LlamaForCausalLM) -> None:
    """Has the decoder layers compiled at their first use; they are alike, so one compilation serves all."""
    for layer in model.model.layers:
        layer.compile(dynamic=False)


def write_weights(out: Path, model: LlamaForCausalLM) -> None:
    """Writes the weights as bf16 in two files of about equal size."""
    state = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(state)
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        save_file({name: state[name] for name in part}, out / f"trained-{number}.safetensors", {"format": "pt"})


def figures(shape: dict[str, Any], recipe: Recipe, history: list[Progress], num_different: int) -> dict[str, Any]:
    """Returns what was trained, how, with what and how it went."""
    cuda = torch.cuda.is_available()
    return {
        "shape": shape,
        "recipe": asdict(recipe),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "num_different_tokens": num_different,
        "num_tokens": history[-1].step * recipe.batch * recipe.window,
        "elapsed_s": history[-1].elapsed_s,
        "history": [asdict(progress) for progress in history],
    }


def main(
    train: Annotated[Path, typer.Argument(help="training text that make_corpus.py left")],
    tokenizer_json: Annotated[Path, typer.Argument(help="tokenizer that make_tokenizer.py left")],
    evaluation: Annotated[Path, typer.Argument(help="text held out")],
    out: Annotated[Path, typer.Argument(help="folder for weights and figures")],
    epochs: Annotated[int, typer.Option(help="how often the text is read")] = Recipe.epochs,
    tiny: Annotated[bool, typer.Option(help="a few small steps, to see that it runs")] = False,
) -> None:
    """Leaves trained-1.safetensors, trained-2.safetensors and training.json in `out`."""
    texts, checks, recipe, shape = read_documents(train), read_documents(evaluation), Recipe(epochs), SHAPE
    if tiny:
        texts, checks, recipe, shape = texts[:160], checks[:12], TINY_RECIPE, TINY_SHAPE
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    documents = encode(texts, tokenizer)
    num_back = max(8, len(documents) // 100)  # the file is in random order
    learner = make_model(shape, device)
    if device.type == "cuda":
        compile_layers_(learner)
    history, best = train_(learner, documents[num_back:], windows(documents[:num_back], recipe.window), recipe)

    model = make_model(shape, device).eval()
    model.load_state_dict({name: tensor.bfloat16() for name, tensor in best.items()})  # measured as it is written
    out.mkdir(parents=True, exist_ok=True)
    write_weights(out, model)
    trained = figures(shape, recipe, history, sum(map(len, documents[num_back:])))
    seen = {"num_parameters": model.num_parameters(), "held_out": held_out(model, tokenizer, checks)}
    seen["samples"] = continuations(model, tokenizer)
    (out / "training.json").write_text(json.dumps({**trained, **seen}, indent=2, ensure_ascii=False) + "\n", "utf8")
    print(json.dumps(seen, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    typer.run(main)
