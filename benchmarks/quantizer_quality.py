"""Divergence from the unquantized model on held-out text: our recipes and the peers'."""

import json
import tempfile
import time
from pathlib import Path

import torch
from quality_scores import Scores
from quality_windows import read_windows

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.evaluate.compare import compare_models
from compress.quantize.recipe import AwqRecipe, Learned, Nearest
from compress.quantize.resources import Resources
from compress.quantize.walk import quantize_model

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo"
NEAREST = Nearest(method="nearest")
PLAIN = {"scale": None, "clip": None, "feedback": None, "rounding": NEAREST}
OURS = {"rtn": PLAIN, "awq-light": {}, "awq-best": {"rounding": Learned(method="learned")}}
RESULT, SCORES = "quantizer_quality.json", "quantizer_quality_windows.safetensors"
NOT_RUN = "not run"
EXPECTED = (  # a peer that nobody ran has a row that says so
    "lmdeploy", "lmdeploy-search", "autoround-200", "llmcompressor-awq", "llmcompressor-gptq", "llmcompressor-awq-gptq",
)  # fmt: skip
ELSEWHERE = {  # another run's figure, on other windows of the calibration's domain, for where this one has none
    "llmcompressor-awq": "0.1363 nats on sotu in 110 s in an earlier run on other windows",
}


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def made(model, tokens, recipe, out):
    """Seconds of quantizing into `out`."""
    out.mkdir(parents=True)
    checkpoint = Checkpoint(model)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), "llama")
    start = time.perf_counter()
    quantize_model(checkpoint, tokens, recipe, writer, Resources(device()))
    return time.perf_counter() - start


def quality(args):
    """After each recipe its rows, one a domain; a peer that made no weights has its reason in them.

    The scores of its windows are in SCORES by then: whoever is measured in another call is paired with them.
    """
    windows = read_windows(args.windows)
    scores = Scores.on(args.out / SCORES, windows)
    if args.taken:
        scores.take(Scores(args.taken / SCORES))
        yield [
            row
            for row in json.loads((args.taken / RESULT).read_text())
            if not (row["reason"] or "").startswith(NOT_RUN)
        ]
        return
    domains = [name for name in windows if not name.startswith("calibration")]
    peers = peer_rows(args.peers, args.out / RESULT, scores.digests["calibration"])
    base = load_model(args.model, device=device())
    with tempfile.TemporaryDirectory() as work:
        for name in OURS if args.recipes is None else args.recipes:
            recipe = AwqRecipe(group_size=64, **OURS[name])
            seconds = made(args.model, windows["calibration"], recipe, Path(work, name))
            scores.put(name, scored(Path(work, name), base, windows, domains))
            facts = {"elapsed_s": round(seconds, 1), "alone": not args.shared, "device": device_name(), "reason": None}
            yield [{"recipe": name, "domain": domain} | facts for domain in domains]
    for name, facts in peers.items():
        scores.put(name, scored(args.peers / name, base, windows, domains) if facts["reason"] is None else {})
        yield [{"recipe": name, "domain": domain} | facts for domain in domains]


def completed(out, rows):
    """All rows, their figures made anew from the scores that lie beside them."""
    return Scores(out / SCORES).complete(rows)


def peer_rows(folder, result, calibration):
    """What is known of every peer but its scores, or why there are none; those that have rows and did not run again
    keep them."""
    ran = {row["recipe"]: row for row in json.loads((folder / "peers.json").read_text())} if folder else {}
    for name, row in ran.items():
        if row["error"] is None and row["calibration"]["sha256"] != calibration:
            raise SystemExit(f"{folder / name}: made on other calibration windows; make it on those of --windows")
    before = {row["recipe"] for row in json.loads(result.read_text())} if result.exists() else set()
    missing = [name for name in EXPECTED if name not in ran and name not in before]
    return {name: peer_row(name, ran.get(name)) for name in [*ran, *missing]}


def peer_row(name, row):
    if row and row["error"] is None:
        return {key: row[key] for key in ("elapsed_s", "alone", "device")} | {"reason": None}
    reasons = [row["error"] if row else NOT_RUN, ELSEWHERE.get(name)]
    reason = "; ".join(reason for reason in reasons if reason)
    return {"elapsed_s": None, "alone": None, "device": device_name(), "reason": reason}


def scored(folder, base, windows, domains):
    variant = load_model(folder, device=device())
    return {domain: compare_models(variant, base, windows[domain].to(device())) for domain in domains}
