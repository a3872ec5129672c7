"""How good the demo base is: held-out perplexity and bits per byte, and some text to look at.

Each document is read by itself, after its BOS. Perplexity is a matter of the tokenizer (long tokens are harder to
guess and fewer), bits per byte are not: they compare with any other model on the same text.
"""

import math
from dataclasses import dataclass

import torch
from documents import Document
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

CHAT_END = "<|im_end|>"
END = 2  # </s>
BEGINNINGS = [
    "Once upon a time there was a",
    "The little dog",
    "It was a rainy day. Lily",
    "My fellow citizens, the state of our Union is",
    "却说曹操",
    "<|im_start|>user\nTell me a story about a cat named Coco.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhy do birds sing?<|im_end|>\n<|im_start|>assistant\n",
]


@dataclass(frozen=True)
class Score:
    """What reading some documents cost."""

    loss_nats: float
    num_tokens: int
    num_bytes: int

    def __add__(self, other: "Score") -> "Score":
        """Returns the score of both."""
        return Score(
            self.loss_nats + other.loss_nats, self.num_tokens + other.num_tokens, self.num_bytes + other.num_bytes
        )

    def figures(self) -> dict[str, float]:
        """Returns perplexity (of a token) and bits per byte."""
        perplexity = math.exp(self.loss_nats / self.num_tokens)
        bits = self.loss_nats / self.num_bytes / math.log(2)
        return {"perplexity": perplexity, "bits_per_byte": bits, "tokens": self.num_tokens, "bytes": self.num_bytes}


@torch.no_grad()
def score(model: LlamaForCausalLM, tokenizer: Tokenizer, document: Document) -> Score:
    """Returns what the document costs in float32, its BOS given."""
    ids = torch.tensor([tokenizer.encode(document.text).ids], device=model.device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
    loss = functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum").item()
    return Score(loss, ids.shape[1] - 1, document.size_bytes)


def held_out(model: LlamaForCausalLM, tokenizer: Tokenizer, documents: list[Document]) -> dict[str, dict[str, float]]:
    """Returns the figures of each domain and of all text together."""
    totals: dict[str, Score] = {}
    for document in documents:
        found = score(model, tokenizer, document)
        for name in (document.domain, "all"):
            totals[name] = totals.get(name, Score(0.0, 0, 0)) + found
    return {name: totals[name].figures() for name in sorted(totals)}


def continuations(model: LlamaForCausalLM, tokenizer: Tokenizer, num_tokens: int = 120) -> list[str]:
    """Returns what the model makes of some beginnings, the beginning included."""
    torch.manual_seed(0)
    ends = [END, tokenizer.token_to_id(CHAT_END)]
    written = []
    for beginning in BEGINNINGS:
        ids = torch.tensor([tokenizer.encode(beginning).ids], device=model.device)
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            max_new_tokens=num_tokens,
            eos_token_id=ends,
            pad_token_id=END,
        )
        written.append(tokenizer.decode(tokens[0, 1:].tolist(), skip_special_tokens=False))
    return written
