"""What the engine is asked for a proof, and what our unpacked weights say to the same.

With a quantized KV cache our side is the simulation of that cache, which the comparison table quotes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel

from compress.checkpoint.attention import growing_keys
from compress.evaluate.kv_cache import quantized_cache
from serving.shape import read_shape

NUM_TEXTS, NUM_GREEDY = 8, 32
MOST_TOKENS = 512  # of a text: every one of them has scores over the whole vocabulary


@dataclass(frozen=True)
class Asked:
    """What both are asked: windows of ids, and texts that a tokenizer reads back as the same ids."""

    windows: list[list[int]]
    texts: list[str]
    text_ids: list[list[int]]


@dataclass(frozen=True)
class Numbers:
    """What either says: each window's mean loss, how each text goes on, and what was scored in it."""

    nll_nats: list[float]
    greedy: list[list[int]]
    logits: Sequence[np.ndarray]  # one a text, (tokens, vocabulary)


@dataclass(frozen=True)
class Ours(Numbers):
    """What our weights say, with the scores among which each token of `greedy` was the likeliest."""

    steps: Sequence[np.ndarray]  # one a text, (NUM_GREEDY, vocabulary)


def what_is_asked(folder: Path, tokens: Tensor) -> Asked:
    """The windows, and the texts of some of them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = min(tokens.shape[1], MOST_TOKENS, (read_shape(folder).max_positions or tokens.shape[1]) - NUM_GREEDY)
    texts = [tokenizer.decode(row[1:length].tolist(), skip_special_tokens=True) for row in tokens[:NUM_TEXTS]]
    return Asked(tokens.tolist(), texts, [tokenizer(text)["input_ids"][:length] for text in texts])


@torch.no_grad()
def our_numbers(model: PreTrainedModel, asked: Asked, bits: int, work: Path) -> Ours:
    """The unpacked weights in float32, a KV cache of 16 bits left as it is; scores lie in files of `work`."""
    losses = []
    for ids in asked.windows:
        scores, _ = _read(model, ids, bits)
        losses.append(torch.nn.functional.cross_entropy(scores[:-1], torch.tensor(ids[1:]).to(scores.device)).item())
    told = [_told(model, ids, bits) for ids in asked.text_ids]
    greedy = [steps.argmax(-1).tolist() for _, steps in told]
    kept = [[_kept(t, work / f"{bits}-{n}-{m}.npy") for m, t in enumerate(pair)] for n, pair in enumerate(told)]
    return Ours(losses, greedy, [logits for logits, _ in kept], [steps for _, steps in kept])


def _told(model: PreTrainedModel, ids: list[int], bits: int) -> tuple[Tensor, Tensor]:
    """The scores of a text's tokens, and those by which it goes on, always with the likeliest token."""
    scores, cache = _read(model, ids, bits)
    steps = [scores[-1]]
    with growing_keys():
        while len(steps) < NUM_GREEDY:
            token = steps[-1].argmax().view(1, 1)
            steps.append(model(token, None, None, cache, use_cache=True).logits[0, -1].float())
    return scores, torch.stack(steps)


def _read(model: PreTrainedModel, ids: list[int], bits: int) -> tuple[Tensor, DynamicCache]:
    """The scores of every token, and the cache that has read them."""
    cache = quantized_cache(bits) if bits < 16 else DynamicCache()
    tokens = torch.tensor([ids], device=model.device)
    scores: Tensor = model(tokens, None, None, cache, use_cache=True).logits[0].float()
    return scores, cache


def _kept(scores: Tensor, place: Path) -> np.ndarray:
    """The scores in a file, read from there when they are looked at."""
    np.save(place, scores.cpu().numpy())
    kept: np.ndarray = np.load(place, mmap_mode="r")
    return kept
