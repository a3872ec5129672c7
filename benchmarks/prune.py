"""What a quarter fewer parameters of the decoder cost, cut in every way we have, before any distillation.

    python benchmarks/prune.py --model SMOLLM2 --windows windows.safetensors            # a GPU: minutes
    python benchmarks/prune.py --model SMOLLM2 --windows windows.safetensors --calibration 8 --length 512 --held-out 4

SMOLLM2 and the windows come from quality_windows.py and carry_smollm2.py. Rows go to benchmarks/results/prune.json: KL
to the whole model in nats a token and perplexity, by domain of the held-out text, from the stored pruned model. Each
way is decided and fitted on the calibration windows alone; layers are scored on their first eight.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch
from quality_windows import read_windows

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.evaluate.compare import compare_models
from compress.prune.budget import decoder_parameters
from compress.prune.mix import ways
from compress.prune.prune import Work, decide, write
from compress.prune.recipe import Compensation, DepthRecipe, MixRecipe, WidthRecipe
from compress.prune.text import Text
from compress.quantize.resources import Resources

DOMAINS = ("sotu", "wikitext2")


def recipes(config, share, windows):
    """By name: every way to meet the target, cut plainly and with least squares, and the two scores of depth."""
    target = {"parameters": share}
    found = ways(config, MixRecipe(method="mix", target=target), "target")
    (alone,) = [way.remove_layers for way in found if not way.sizes]
    for score, contiguous in (("influence", False), ("influence", True), ("kl", True), ("kl", False)):
        said = {"method": "depth", "remove_layers": alone, "score": score, "contiguous": contiguous}
        name = f"−{alone} layers by {score}{', neighbours' * contiguous}"
        yield name, DepthRecipe(**said, windows=windows)
        yield f"{name}, made good", DepthRecipe(**said, windows=windows, compensation=Compensation())
    for way in found:
        for importance in ("activation", "gram") if way.sizes else ():
            layers = {"remove_layers": way.remove_layers} if way.remove_layers else {}
            said = {"method": "width", "importance": importance, "windows": windows} | dict(way.sizes) | layers
            yield f"{way}, {importance}", WidthRecipe(**said)


def measured(args, name, recipe, text, base, sets):
    """A row a domain."""
    source, began = Checkpoint(args.model), time.perf_counter()
    work = Work(source, text, Resources(args.device, args.batch), name)
    with tempfile.TemporaryDirectory(dir=args.disk) as folder:
        decision = decide(work, recipe, args.disk)
        write(work, recipe, decision, ModelWriter(Path(folder), decision.config, "llama"))
        elapsed_s, model = time.perf_counter() - began, load_model(Path(folder), device=args.device)
    about = {
        "model": args.model.name, "recipe": name, "parameters": decoder_parameters(decision.config),
        "share": decoder_parameters(decision.config) / decoder_parameters(source.config),
        "removed": list(decision.removed), "calibration_tokens": text.tokens.numel(),
        "elapsed_s": round(elapsed_s, 1), "device": device_name(args.device),
    }  # fmt: skip
    for domain, tokens in sets.items():
        means = compare_models(model, base, tokens.to(args.device), batch=args.batch).means()
        scores = {"perplexity": means["perplexity"], "kl_nats": means["kl_nats"]}
        yield about | {"domain": domain, "tokens": tokens.numel()} | scores


def device_name(device):
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True, help="windows.safetensors of quality_windows.py")
    parser.add_argument("--share", type=float, default=0.75, help="of the decoder's parameters that stay, at most")
    parser.add_argument("--calibration", type=int, default=128, help="windows to decide and fit on")
    parser.add_argument("--held-out", type=int, default=32, help="windows of each domain")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window that are used")
    parser.add_argument("--scored", type=int, default=8, help="windows on which layers are scored")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--recipes", nargs="+", help="only those whose names contain one of these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prune.json")
    args = parser.parse_args()
    read = {name: windows[:, : args.length].contiguous() for name, windows in read_windows(args.windows).items()}
    text = Text(read["calibration"][: args.calibration])
    sets = {name: read[name][: args.held_out] for name in DOMAINS}
    base, rows = load_model(args.model, device=args.device), []
    for name, recipe in recipes(Checkpoint(args.model).config, args.share, args.scored):
        if args.recipes and not any(part in name for part in args.recipes):
            continue
        for row in measured(args, name, recipe, text, base, sets):
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf8")


if __name__ == "__main__":
    main()
