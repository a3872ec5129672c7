"""What a model writes behind held-out beginnings, greedily and by sampling, and how likely its base finds that.

Greedy text cannot show that a model has come loose: the base's own goes round in circles. So beside it stands text that
is drawn at temperature 1, by the same chances for every model: what share of its 4-grams it says twice, and how much
less likely the base finds it than the base's own text from the same beginning.
"""

from dataclasses import dataclass

import numpy as np
import torch
from won_back import interval

from compress.distill.generate import generate
from compress.distill.recipe import GenerateRecipe
from compress.evaluate.outputs import describe, likelihood, repetition, write_on

PROMPT, WRITTEN = 32, 256
GREEDY, SAMPLED = 8, 16  # beginnings of each domain


@dataclass(frozen=True)
class Sampled:
    """By beginning: the share of 4-grams said twice, and the base's mean NLL of a token that was drawn."""

    repetition: np.ndarray
    nll_nats: np.ndarray


def greedy(variant, base, held_out, ends):
    """Means over continuations up to their end mark; `perplexity` is the base's."""
    outputs = write_on(variant, _beginnings(held_out, GREEDY).to(variant.device), WRITTEN, ends, batch=32)
    said = describe(outputs)
    return {
        "perplexity": float(np.exp(likelihood(base, outputs))),
        "repetition": said["output_repetition"], "written_tokens": said["output_tokens"],
    }  # fmt: skip


def sampled(variant, base, held_out):
    """The same beginnings and the same chances for whichever variant; all of one length, end marks or not."""
    prompts = _beginnings(held_out, SAMPLED)
    length = min(PROMPT + WRITTEN, base.config.max_position_embeddings)
    recipe = GenerateRecipe(windows=len(prompts), length=length, prompt_tokens=PROMPT, seed=0)
    texts = generate(variant, prompts, recipe)
    return Sampled(np.array([repetition(row[PROMPT:].tolist()) for row in texts]), _nll(base, texts))


def beside_base(ours, base):
    """Columns of a row: what was drawn, beside what the base drew from the same beginnings."""

    def rise(now, before):
        return now - before

    return {
        "sampled_repetition": float(ours.repetition.mean()), "sampled_nll_nats": float(ours.nll_nats.mean()),
        **interval("sampled_nll_rise_nats", rise, ours.nll_nats, base.nll_nats),
    }  # fmt: skip


def _beginnings(held_out, count):
    return torch.cat([tokens[:count, :PROMPT] for tokens in held_out.values()])


@torch.no_grad()
def _nll(base, texts):
    """By window, of what stands behind the beginning."""
    found = []
    for batch in texts.to(base.device).split(4):
        logits = base(batch[:, :-1]).logits[:, PROMPT - 1 :].float().log_softmax(-1)
        found.append(-logits.gather(-1, batch[:, PROMPT:, None])[..., 0].mean(1))
    return torch.cat(found).cpu().double().numpy()
