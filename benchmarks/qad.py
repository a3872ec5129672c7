"""How much of a 4-bit model's divergence training in its own format closes: `awq-light` before and after, by domain.

    python benchmarks/qad.py --model SMOLLM2 --windows windows.safetensors --training training.safetensors \\
        scales:steps=400,batch=8,learning_rate=0.001,text=sotu \\
        codes:steps=2000,batch=8,learning_rate=0.0005,rate=10,embeddings=1,text=sotu+wikitext2*4+sanguo+code*4

A recipe is what moves (`scales`, `codes`) and settings of `DistillRecipe`; `rate` is that of codes, `embeddings` that
of embeddings and head, which stay without it; `text` names the sets trained on, `code*4` taken four times: of
training.safetensors (training_windows.py), or `calibration` of windows.safetensors (quality_windows.py). All start from
the same artifact, made with `awq-light` in groups of 64, and are measured on the held-out windows from the folder that
they were written to. Intervals are of a bootstrap over windows, before and after by the same draws.
Prints its rows and writes benchmarks/results/qad.json, a row a recipe and domain; `all` is every held-out window.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np
import torch
from prune_distill import teacher_of
from quality_scores import DRAWS
from quality_windows import digest, read_windows
from quantizer import save, table
from quantizer_quality import device, device_name, made, scored

from compress.checkpoint.load import load_model
from compress.distill.quantized import load_quantized, write_quantized
from compress.distill.recipe import DistillRecipe
from compress.distill.train import distill_
from compress.quantize.recipe import AwqRecipe

DEFAULTS = {"batch": 8, "warmup_steps": 20, "precision": "bf16"}
EVERY = "all"


def parsed(said):
    """A recipe, and the names of the sets that it is trained on, out of `codes:steps=400,…,text=a+b`."""
    method, _, settings = said.partition(":")
    values = DEFAULTS | dict(setting.split("=", 1) for setting in settings.split(",") if setting)
    text = values.pop("text", "calibration")
    moving = {key: float(values.pop(key)) for key in ("rate", "embeddings") if key in values}
    numbers = {key: value if key == "precision" else json.loads(str(value)) for key, value in values.items()}
    return DistillRecipe.model_validate_json(json.dumps(numbers | {"train": {"method": method} | moving})), text.split(
        "+"
    )


def joined(sets, names, held_out):
    """The windows of some sets, one behind the other, those of `name*3` three times."""
    parts = []
    for name, _, times in (said.partition("*") for said in names):
        if name not in sets:
            raise SystemExit(f"text: {name}: no such set; there are {', '.join(sets)}")
        shared = {row.tobytes() for row in sets[name].numpy()} & held_out
        if shared:
            raise SystemExit(
                f"text: {name}: {len(shared)} of its windows are held out; make training.safetensors again"
            )
        parts += [sets[name]] * int(times or 1)
    return torch.cat(parts)


def repaired(model, start, recipe, tokens, out):
    """Writes the trained model to `out`; seconds and the loss at both ends."""
    student, teacher = load_quantized(start, recipe.train, device()), teacher_of(model)
    begun = time.perf_counter()
    steps = distill_(student, teacher, tokens, recipe)
    elapsed_s = time.perf_counter() - begun
    out.mkdir()
    write_quantized(student, start, out)
    few = max(1, len(steps) // 20)
    ends = [float(np.mean([step.loss_nats for step in part])) for part in (steps[:few], steps[-few:])]
    return {"elapsed_s": round(elapsed_s, 1), "first_loss_nats": ends[0], "last_loss_nats": ends[1]}


def paired(before, after):
    """Divergence before and after, and the share that is closed with its 95 % interval, over the same windows."""
    draws = np.random.default_rng(0).integers(0, len(before), (DRAWS, len(before)))
    low, high = np.percentile(1 - after[draws].mean(1) / before[draws].mean(1), [2.5, 97.5])
    closed = 1 - after.mean() / before.mean()
    return {
        "kl_before_nats": float(before.mean()), "kl_after_nats": float(after.mean()),
        "closed": float(closed), "closed_low": float(low), "closed_high": float(high),
    }  # fmt: skip


def rows_of(name, facts, before, after):
    """A row a domain, and one for all windows together."""

    def kl(scores, domain):
        chosen = scores if domain == EVERY else {domain: scores[domain]}
        return torch.cat([score.kl_nats for score in chosen.values()]).cpu().numpy()

    for domain in (*before, EVERY):
        yield {"recipe": name, "domain": domain, **paired(kl(before, domain), kl(after, domain)), **facts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="METHOD:key=value,…")
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--windows", type=Path, required=True, help="of quality_windows.py")
    parser.add_argument("--training", type=Path, help="of training_windows.py")
    parser.add_argument("--start", type=Path, help="a 4-bit folder to begin with, kept; made here if there is none")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--held-out", type=int, help="only so many windows a domain")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "qad.json")
    args = parser.parse_args()
    recipes = {said: parsed(said) for said in args.recipes}
    windows = read_windows(args.windows)
    held_out = {name: w[: args.held_out] for name, w in windows.items() if not name.startswith("calibration")}
    known = {row.tobytes() for name in held_out for row in windows[name].numpy()}
    sets = {"calibration": windows["calibration"]} | (read_windows(args.training) if args.training else {})
    texts = {said: joined(sets, names, known) for said, (_, names) in recipes.items()}
    with tempfile.TemporaryDirectory() as work:
        start = args.start or Path(work, "start")
        if not start.exists():
            seconds = made(args.model, windows["calibration"], AwqRecipe(group_size=args.group), start)
            print(f"awq-light: {seconds:.1f} s", flush=True)
        base = load_model(args.model, device=device())
        before = scored(start, base, held_out, list(held_out))
        digests = {name: digest(windows[name].numpy())[:16] for name in held_out}
        for number, (said, (recipe, _)) in enumerate(recipes.items()):
            out = Path(work, str(number))
            facts = repaired(args.model, start, recipe, texts[said], out)
            facts |= {"tokens": recipe.steps * recipe.batch * texts[said].shape[1], "device": device_name()}
            rows = list(rows_of(said, facts, before, scored(out, base, held_out, list(held_out))))
            rows = [row | {"windows": digests.get(row["domain"])} for row in rows]
            table(rows)
            save(args.out, rows, ("recipe", "domain"))


if __name__ == "__main__":
    main()
