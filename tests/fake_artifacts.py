"""Artifacts of a few bytes, and their publishing: to the registry, a model is a folder of sealed files."""

import json
from pathlib import Path

from registry.manifest import Manifest, seal
from registry.publish import publish
from registry.store import connect

SHAPE = {  # of a model that a server could be told about
    "architectures": ["InternLM2ForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


def fake_artifact(folder: Path, text: str = "weights", *, kind: str = "quantized", **facts) -> Manifest:
    """Writes and seals a small artifact; equal texts give equal digests."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(text.encode() * 100)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    told = {
        "recipe": {"method": "awq", "group_size": 128, "scales": {"grid": 20}},
        "parents": {},
        "data": {"calibration": "c" * 64},
        "seed": 0,
        "origin": {"source": "examples/demo/base", "revision": "none"},
        "versions": {"turbopress": "0.1.0"},
    }
    return seal(folder, kind=kind, **(told | facts))


def fake_report(variant: str, **metrics: float) -> dict:
    measured = {"perplexity": 12.3, "perplexity_delta": 0.2, "kl_nats": 0.01, "size_bytes": 1000}
    return {
        "variant": variant,
        "kind": "quantized",
        "metrics": measured | metrics,
        "protocol": {"windows": 40, "length": 512},
    }


def enter(root: Path, variant: str = "awq-w4", **changes):
    """Publishes models/VARIANT of the repository at `root`."""
    report = changes.pop("report", fake_report(variant))
    return publish(root / "models" / variant, report, root=root, model="demo", variant=variant, **changes)


def runs(root: Path) -> list:
    """The model's runs, newest first."""
    client = connect(root).client
    return client.search_runs([client.get_experiment_by_name("demo").experiment_id])
