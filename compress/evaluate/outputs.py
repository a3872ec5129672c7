"""What a model writes when it is let go on: how long, how repetitive, and how likely the base finds it.

A compressed model may keep its perplexity on given text and still run in circles when it writes by itself. Both
models go on greedily from the same beginnings, so nothing is drawn and equal models write equal text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from compress.checkpoint.attention import growing_keys
from compress.progress import Progress, silent

NGRAM = 4


@dataclass(frozen=True)
class Outputs:
    """Continuations of the same prompts, each cut at its end mark."""

    prompts: Integer[Tensor, "windows prompt"]
    written: Sequence[Sequence[int]]
    most_tokens: int


@torch.no_grad()
def write_on(
    model: PreTrainedModel,
    prompts: Integer[Tensor, "windows prompt"],
    most_tokens: int,
    stop_ids: Sequence[int],
    *,
    batch: int = 8,
    progress: Progress = silent,
) -> Outputs:
    """The greedy continuation of every prompt, its end mark included, within the model's context."""
    most = min(most_tokens, model.config.max_position_embeddings - prompts.shape[1])
    config = GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=0)
    written: list[list[int]] = []
    for part in progress(prompts.split(batch), "batch"):
        with growing_keys():
            both = model.generate(part, attention_mask=torch.ones_like(part), generation_config=config)
        written += [_until_the_end(row, stop_ids) for row in both[:, part.shape[1] :].tolist()]
    return Outputs(prompts, written, most)


def describe(outputs: Outputs) -> Mapping[str, float]:
    """Mean length in tokens, the share that ended by themselves, and the share of 4-grams that were said before."""
    count = len(outputs.written)
    lengths = [len(row) for row in outputs.written]
    return {
        "output_tokens": sum(lengths) / count,
        "output_ended": sum(length < outputs.most_tokens for length in lengths) / count,
        "output_repetition": sum(map(repetition, outputs.written)) / count,
    }


def repetition(row: Sequence[int]) -> float:
    """The share of 4-grams that occur earlier in the row: 0 where nothing is said twice, near 1 in a circle."""
    grams = [tuple(row[n : n + NGRAM]) for n in range(len(row) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def likelihood(base: PreTrainedModel, outputs: Outputs, *, progress: Progress = silent) -> float:
    """The base's mean NLL in nats of a written token, given the prompt and what was written before it."""
    total, count = 0.0, 0
    for prompt, row in progress(list(zip(outputs.prompts, outputs.written, strict=True)), "output"):
        if not row:
            continue
        whole = torch.cat([prompt, torch.tensor(row, device=prompt.device)])[None]
        logits = base(whole[:, :-1]).logits[0, -len(row) :].float().log_softmax(-1)
        total -= logits.gather(1, whole[0, -len(row) :, None]).sum().item()
        count += len(row)
    return total / max(count, 1)


def _until_the_end(row: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [n for n, token in enumerate(row) if token in stop_ids]
    return list(row[: ends[0] + 1] if ends else row)
