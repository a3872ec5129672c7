"""Stage `evaluate`: what a stored model lost against the stored base, on the evaluation windows."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from compress.checkpoint.load import load_model
from compress.checkpoint.write import write_json
from compress.corpus import Windows, load_windows
from compress.evaluate.intervals import DRAWS
from compress.evaluate.outputs import describe, likelihood, write_on
from compress.evaluate.replay import BATCH, load_reference
from compress.evaluate.size import sizes
from compress.evaluate.tokens import LiveReference, Reference, score_tokens
from pipelines import plots
from pipelines.languages import languages
from pipelines.params import load
from pipelines.progress import show
from pipelines.scores import documents_json, measure, strata, unit
from pipelines.stage import device, fresh_file, parent, repository_root, run
from registry.manifest import fresh_folder

PROMPTS, PROMPT_TOKENS, WRITTEN_TOKENS = 16, 64, 64  # windows whose beginnings are continued
Hidden = Annotated[Path | None, typer.Option(help="the base's hidden states, which stage `reference` kept")]


def main(
    key: str, folder: Path, base: Path, evaluation: Path, out: Path, details: Path, reference: Hidden = None
) -> None:
    """Writes the report of FOLDER to OUT; its scores, document by document, and a picture to the folder DETAILS."""
    artifact, windows = parent(folder), load_windows(evaluation)
    origin = artifact if folder == base else parent(base)
    tokens = torch.from_numpy(windows.tokens).long().to(device())
    variant = load_model(folder, device=device())
    beside = _reference(reference, base, {"base": origin.digest, "evaluation": windows.digest})
    scores = score_tokens(variant, beside, tokens, batch=BATCH, progress=show)
    metrics, intervals = measure(scores, windows)
    written = _written(variant, base, tokens)
    report: dict[str, Any] = {
        "variant": key,
        "kind": artifact.kind,
        "artifact": artifact.digest,
        "metrics": {**metrics, **_sizes(folder, base), **written},
        "kv_cache": _with_caches(key, variant, beside, windows, tokens),
        "intervals": intervals,
        **strata(scores, windows, languages(windows, base / "tokenizer.json")),
        "protocol": _protocol(windows),
        "data": {"evaluation": windows.digest},
    }
    with fresh_folder(details) as fresh:
        write_json(fresh / "documents.json", documents_json(scores, windows))
        plots.domains(report["domains"], fresh / "domains.png")
    with fresh_file(out) as file:
        write_json(file, report)


def _with_caches(
    key: str, variant: PreTrainedModel, beside: Reference, windows: Windows, tokens: Tensor
) -> dict[str, dict[str, float]]:
    """What the variant loses with each of its quantized KV caches in params.yaml."""
    found = {}
    for bits in load(repository_root()).kv_cache.get(key, []):
        scores = score_tokens(variant, beside, tokens, kv_bits=bits, batch=BATCH, progress=show)
        found[f"int{bits}"] = measure(scores, windows)[0]
    return found


def _reference(hidden: Path | None, base: Path, about: dict[str, str]) -> Reference:
    """The base as it was kept, or computed beside the variant."""
    if hidden is None:
        return LiveReference(load_model(base, device=device()))
    return load_reference(hidden, base, about, device())


def _written(variant: PreTrainedModel, base: Path, tokens: Tensor) -> dict[str, float]:
    """What the variant writes when it goes on from the beginnings of some windows, and what the base thinks of it."""
    prompts = tokens[:PROMPTS, : min(PROMPT_TOKENS, tokens.shape[1] // 2)]
    stop = GenerationConfig.from_pretrained(base).eos_token_id if (base / "generation_config.json").is_file() else None
    ends = [stop] if isinstance(stop, int) else list(stop or [])
    outputs = write_on(variant, prompts, WRITTEN_TOKENS, ends, batch=BATCH, progress=show)
    judged = likelihood(load_model(base, device=device()), outputs)
    return {**describe(outputs), "output_nll_nats": judged}


def _sizes(folder: Path, base: Path) -> dict[str, float]:
    ours = sizes(folder)
    return {**ours, "size_ratio": ours["size_bytes"] / sizes(base)["size_bytes"]}


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
        "top5_agreement": "mean share of the base's five likeliest tokens that are among the variant's five",
        "outputs": f"greedy, {WRITTEN_TOKENS} tokens at most after the beginnings of {PROMPTS} windows",
        "intervals": f"95 %, bootstrap over {unit(windows)}s, {DRAWS} draws",
    }


if __name__ == "__main__":
    run(main)
