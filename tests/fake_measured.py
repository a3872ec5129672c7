"""Measured variants of a few documents, with exactly known differences."""

import numpy as np

from pipelines.measured import Measured

TOKENS = 100.0
COUNT = 40


def sums(kl=0.01, rise=0.02, top1=0.95, noise=0.0, seed=0):
    """Columns of documents of the base at perplexity e³, with a divergence, a rise of perplexity and an agreement."""
    generator = np.random.default_rng(seed)
    hard = generator.gamma(8, 1 / 8, COUNT)  # some documents are harder than others, for every variant alike
    shake = 1 + noise * generator.normal(0, 1, COUNT)
    base = 3 * hard * TOKENS
    return {
        "nll_nats": (base + np.log1p(rise) * TOKENS).tolist(),
        "base_nll_nats": base.tolist(),
        "kl_nats": (kl * TOKENS * shake).tolist(),
        "top1": [top1 * TOKENS] * COUNT,
        "top5": [top1 * TOKENS] * COUNT,
        "tokens": [TOKENS] * COUNT,
        "predicted": [TOKENS] * COUNT,
    }


def speed(tokens_per_s=100.0, spread=0.02, engine="transformers", machine="cpu"):
    one = {
        "tokens_per_s": tokens_per_s,
        "slowest_tokens_per_s": tokens_per_s * (1 - spread),
        "fastest_tokens_per_s": tokens_per_s * (1 + spread),
    }
    return {"engine": engine, "machine": machine, "batches": {"1": one, "8": one}}


def measured(name="awq-w4", *, size_bytes=500, evaluation="e" * 64, timed=None, **facts):
    documents = {"evaluation": evaluation, "units": list(range(COUNT)), "columns": sums(**facts)}
    report = {"metrics": {"size_bytes": size_bytes}} | ({"speed": timed} if timed else {})
    return Measured(name, report, documents)


def proof(artifact, ways, failed=()):
    """What `turbopress conformance` writes of an artifact: these ways to serve it, (layout, KV bits, GPUs)."""
    cases = [
        {"layout": layout, "kv_bits": bits, "tp": tp, "passed": way not in failed}
        | ({"reason": "top-1 agreement 98.50 %"} if way in failed else {})
        for way in dict.fromkeys([*ways, *failed])
        for layout, bits, tp in [way]
    ]
    return {
        "artifact": artifact, "engine": "lmdeploy 0.18.0", "device": "NVIDIA H200", "thresholds": {}, "windows": "w",
        "passed": not failed, "cases": cases,
    }  # fmt: skip
