"""Stage `evaluate`: what a stored model lost against the stored base, on the evaluation windows."""

from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.load import load_model
from compress.checkpoint.write import write_json
from compress.corpus import Windows, load_windows
from compress.evaluate.compare import WindowScores, compare_caches
from compress.evaluate.size import sizes
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import device, fresh_file, parent, repository_root, run
from registry.manifest import fresh_folder


def main(key: str, folder: Path, base: Path, evaluation: Path, out: Path, details: Path) -> None:
    """Writes the report of FOLDER to OUT; its scores, window by window, and a picture to the folder DETAILS."""
    artifact, windows = parent(folder), load_windows(evaluation)
    if folder != base:
        parent(base)
    tokens = torch.from_numpy(windows.tokens).long().to(device())
    reference = load_model(base, device=device())
    variant = reference if folder == base else load_model(folder, device=device())
    counted = None if windows.predicts is None else torch.from_numpy(windows.predicts).to(device())
    caches = load(repository_root()).kv_cache.get(key, [])
    by_cache = compare_caches(variant, reference, tokens, (None, *caches), counted=counted, progress=show)
    scores = by_cache[None]
    report: dict[str, Any] = {
        "variant": key,
        "kind": artifact.kind,
        "artifact": artifact.digest,
        "metrics": {**scores.means(), **_sizes(folder, base)},
        "kv_cache": {f"int{bits}": dict(by_cache[bits].means()) for bits in caches},
        "domains": _by_domain(scores, windows),
        "protocol": _protocol(windows),
        "data": {"evaluation": windows.digest},
    }
    with fresh_folder(details) as fresh:
        write_json(fresh / "windows.json", _rows(scores, windows))
        plots.domains(report["domains"], fresh / "domains.png")
    with fresh_file(out) as file:
        write_json(file, report)


def _sizes(folder: Path, base: Path) -> dict[str, float]:
    ours = sizes(folder)
    return {**ours, "size_ratio": ours["size_bytes"] / sizes(base)["size_bytes"]}


def _by_domain(scores: WindowScores, windows: Windows) -> dict[str, dict[str, float]]:
    names = sorted(set(windows.domains))
    return {name: dict(scores.means(torch.tensor([d == name for d in windows.domains]))) for name in names}


def _protocol(windows: Windows) -> dict[str, object]:
    """How to get the same numbers with another program."""
    count, length = windows.tokens.shape
    counted = {} if windows.mask is None else {"counted_tokens": int(windows.mask.sum())}
    return {
        **counted,
        "windows": count,
        "length": length,
        "stride": length,
        "bos": "where the tokenizer puts it: at the start of each document",
        "weights": "the stored numbers, unpacked to float32",
        "inputs": "float32; of int8 variants each linear's rounded to 8 bits a token, as their engine rounds them",
        "kv_cache": "float32; int8 and int4 are each token's keys and values in each head, asymmetric",
        "perplexity": "exp of the mean NLL of tokens 2 to the last of every window",
        "kl_nats": "mean KL(base || variant) over all positions, whole vocabulary",
    }


def _rows(scores: WindowScores, windows: Windows) -> list[dict[str, object]]:
    columns = {name: getattr(scores, name).tolist() for name in ("nll_nats", "base_nll_nats", "kl_nats", "top1")}
    return [
        {"domain": domain, **{name: column[n] for name, column in columns.items()}}
        for n, domain in enumerate(windows.domains)
    ]


if __name__ == "__main__":
    run(main)
