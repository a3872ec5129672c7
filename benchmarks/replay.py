"""What the kept hidden states take on disk beside logits in float16, and how exactly the divergence comes out of them.

    dvc repro evaluate-quantized && python benchmarks/replay.py

Reads models/, data/evaluation and data/reference; writes benchmarks/results/replay.json.
"""

import json
from pathlib import Path

import torch

from compress.checkpoint.load import load_model
from compress.corpus import load_windows
from compress.evaluate.replay import BATCH, load_reference
from compress.evaluate.tokens import LiveReference, score_tokens
from registry.manifest import read

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "replay.json"
VARIANTS = ("awq-w4", "student")
FULL = {"vocabulary": 92_544, "hidden": 2048}  # of InternLM2-1.8B


def main() -> None:
    base, hidden = ROOT / "models" / "base", ROOT / "data" / "reference"
    windows = load_windows(ROOT / "data" / "evaluation")
    tokens = torch.from_numpy(windows.tokens).long()
    live = load_model(base)
    kept = load_reference(hidden, base, {"base": read(base).digest, "evaluation": windows.digest}, "cpu")
    off = {}
    for variant in VARIANTS:
        model = load_model(ROOT / "models" / variant)
        direct, replayed = (score_tokens(model, r, tokens, batch=BATCH) for r in (LiveReference(live), kept))
        off[variant] = {
            "largest_of_a_token_nats": (direct.kl_nats - replayed.kl_nats).abs().max().item(),
            "mean_nats": abs((direct.kl_nats.double().mean() - replayed.kl_nats.double().mean()).item()),
        }
    vocabulary = live.config.vocab_size
    stored, logits = sum(p.stat().st_size for p in hidden.iterdir()), tokens.numel() * vocabulary * 2
    found = {
        "tokens": tokens.numel(), "vocabulary": vocabulary, "hidden": live.config.hidden_size,
        "states_bytes": stored, "fp16_logits_bytes": logits, "times_smaller": logits / stored,
        "times_smaller_at_92544_by_arithmetic": FULL["vocabulary"] * 2 / (FULL["hidden"] * 4),
        "difference_from_the_direct_computation": off,
    }  # fmt: skip
    RESULT.write_text(json.dumps(found, indent=2) + "\n", "utf8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
