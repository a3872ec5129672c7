"""A quarter of the decoder cut, distilled, quantized and repaired: what each step costs and what it wins back.

    python benchmarks/prune_distill.py demo                                   # on a CPU, behind `dvc repro`: minutes
    python benchmarks/prune_distill.py smollm2 --model SMOLLM2 --windows windows.safetensors \\
        --training training.safetensors own.safetensors --text sotu+shakespeare+own

SMOLLM2 and the windows come from carry_smollm2.py, quality_windows.py, training_windows.py and own_words.py; `--text`
names the sets that are trained on, none of the domain that the promise is about (wikitext2). Stages: base, pruned,
distilled, base-w4, distilled-w4, and with `--repair` distilled-w4-repaired. `recovered` and `recovered_kl` are the
shares of the perplexity and of the KL that pruning cost which a stage has won back, `extra_…` what quantizing the
student costs more than quantizing the base (won_back.py); the domain `written` is of continuations of held-out
beginnings (continuations.py), where `perplexity` is the base's of what was written greedily. A row holds the recipe of
its stage and the text that this read; all have the same columns, empty where there is nothing to say. Rows replace
those of the same model, way, stage and domain in benchmarks/results/prune_distill.json.

The nearest published figure is of another protocol: Minitron kept 95.6 % of Qwen3-8B's MMLU after 14 % of its
parameters were cut and 1.6 M tokens distilled on two H200s in 1 h 45.
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
from continuations import beside_base, greedy, sampled
from quantizer import save, table
from quantizer_quality import device, device_name, made
from recipe_family import Recipes, Texts, said
from transformers import GenerationConfig
from won_back import quantization_extra, recovered

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter, write_model
from compress.distill.quantized import load_quantized, write_quantized
from compress.distill.recipe import DistillRecipe
from compress.distill.train import distill_
from compress.evaluate.compare import WindowScores, compare_models
from compress.prune.budget import decoder_parameters
from compress.prune.prune import Work, decide, write
from compress.prune.recipe import Compensation, DepthRecipe, MixRecipe, WidthRecipe
from compress.prune.text import Text
from compress.quantize.recipe import AwqRecipe
from compress.quantize.resources import Resources
from compress.quantize.turbomind import require_servable
from pipelines.progress import showing

PRUNING = {"depth": DepthRecipe, "width": WidthRecipe, "mix": MixRecipe}
QUARTER = {"method": "width", "intermediate_size": 1024, "group_size": None}
LONGER = {  # what ten minutes of an H200 hold: 537 s, beside 427 for 3,200 steps, which won 68 % back instead of 71
    "steps": 4400, "batch": 32, "learning_rate": 0.0007, "warmup_steps": 50, "precision": "bf16",
    "evaluate": {"every": 1100, "windows": 64},
    # Short trainings owe most to the streams: on the demo base's narrowed student, 100 steps without them won nothing.
    "loss": [{"kind": "forward_kl"}, {"kind": "hidden", "weight": 16.0}],
}  # fmt: skip
REPAIR = {
    "steps": 1000, "batch": 8, "learning_rate": 0.0005, "warmup_steps": 20, "precision": "bf16",
    "train": {"method": "scales", "embeddings": 1.0},
}  # fmt: skip
ALL = "all"
NOT_SHOWN = ("text", "recipe")  # in the file only
SHARES = [f"{name}{end}" for name in ("recovered", "recovered_kl") for end in ("", "_low", "_high")]
EXTRA = [f"extra_{name}{end}" for name in ("nll_nats", "kl_nats") for end in ("", "_low", "_high")]
WRITTEN = [
    "repetition", "written_tokens", "sampled_repetition", "sampled_nll_nats",
    *(f"sampled_nll_rise_nats{end}" for end in ("", "_low", "_high")),
]  # fmt: skip
COLUMNS = (
    "model", "way", "stage", "parameters", "domain", "perplexity", "kl_nats", *SHARES, *EXTRA, *WRITTEN,
    "tokens", "elapsed_s", "alone", "device", *NOT_SHOWN,
)  # fmt: skip
# Ways to cut a quarter of the demo base's decoder: the first is that of params.yaml.
STARTS = {
    "depth": DepthRecipe(method="depth", remove_layers=2),
    "depth by KL, made good": DepthRecipe(method="depth", remove_layers=2, score="kl", compensation=Compensation()),
    "feed-forward": WidthRecipe(method="width", intermediate_size=512),
}


def steps(model, texts, recipes, work):
    """Makes one stage after the other below `work`: its name, folder, tokens that it saw, and seconds."""
    yield "base", model, 0, 0.0
    base, pruned, student = teacher_of(model), work / "pruned", work / "distilled"
    seconds = clock()
    prune(model, texts.calibration, recipes.prune, pruned)
    yield "pruned", pruned, texts.calibration.numel(), seconds()
    seconds, learner = clock(), load_model(pruned, device=device())
    taught(learner, base, texts.training, recipes.distill)
    student.mkdir()
    write_model(learner, Checkpoint(pruned).config, student)
    seen = recipes.distill.steps * recipes.distill.batch * texts.training.shape[1]
    yield "distilled", student, seen, seconds()
    for source in (model, student):
        stage = "base-w4" if source == model else "distilled-w4"
        recipe = recipes.of(stage)[0]
        seconds = made(source, texts.calibration, recipe, work / stage)
        yield stage, work / stage, texts.calibration.numel(), seconds
    if recipes.repair is None:
        return
    seconds, learner = clock(), load_quantized(work / "distilled-w4", recipes.repair.train, device())
    taught(learner, base, texts.training, recipes.repair)
    repaired = work / "distilled-w4-repaired"
    repaired.mkdir()
    write_quantized(learner, work / "distilled-w4", repaired)
    yield repaired.name, repaired, recipes.repair.steps * recipes.repair.batch * texts.training.shape[1], seconds()


def teacher_of(model):
    """The base as a stage would hold it: on a GPU in 16 bits."""
    return load_model(model, torch.bfloat16 if torch.cuda.is_available() else torch.float32, device())


def taught(learner, base, tokens, recipe):
    """Trains, and says now and then how far it is."""
    distill_(learner, base, tokens, recipe, progress=showing(recipe.batch * tokens.shape[1], "tokens"))


def clock():
    """Seconds since it was made."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began


def prune(model, calibration, recipe, out):
    work = Work(Checkpoint(model), Text(calibration), Resources(device()), "prune")
    decision = decide(work, recipe, out.parent)
    require_servable(decision.config, "llama", None, str(model), recipe.tensor_parallel)
    out.mkdir()
    write(work, recipe, decision, ModelWriter(out, decision.config, "llama"))


def scored(folder, base, held_out):
    """Scores by domain, those of all windows together last."""
    variant = load_model(folder, device=device())
    scores = {domain: compare_models(variant, base, tokens.to(device())) for domain, tokens in held_out.items()}
    names = ("nll_nats", "base_nll_nats", "kl_nats", "top1")
    whole = WindowScores(*(torch.cat([getattr(score, name) for score in scores.values()]) for name in names))
    return variant, scores | ({ALL: whole} if len(scores) > 1 else {})


def end_marks(model):
    """The ids that end a text, as generation_config.json has them."""
    ends = (
        GenerationConfig.from_pretrained(model).eos_token_id if (model / "generation_config.json").is_file() else None
    )
    return [ends] if isinstance(ends, int) else list(ends or [])


def measured(name, way, model, texts, recipes, alone):
    """A row a domain, stage after stage, so that what is through is kept if the machine goes."""
    base, scores, drawn, ends = load_model(model, device=device()), {}, {}, end_marks(model)
    with tempfile.TemporaryDirectory() as work:
        for stage, folder, tokens, elapsed_s in steps(model, texts, recipes, Path(work)):
            variant, scores[stage] = scored(folder, base, texts.held_out)
            drawn[stage] = sampled(variant, base, texts.held_out)
            size = decoder_parameters(Checkpoint(folder).config)
            about = {"model": name, "way": way, "stage": stage, "parameters": size}
            seen = {
                "tokens": tokens,
                "elapsed_s": round(elapsed_s, 1),
                "alone": alone,
                "device": device_name(),
                **said(stage, texts, recipes),
            }
            rows = [about | row(stage, domain, scores) | seen for domain in scores[stage]]
            rows.append(about | {"domain": "written", "kl_nats": None, "recovered": None})
            rows[-1] |= greedy(variant, base, texts.held_out, ends) | beside_base(drawn[stage], drawn["base"]) | seen
            yield [dict.fromkeys(COLUMNS) | each for each in rows]


def row(stage, domain, scores):
    """What a stage is measured to be on a domain, and where it stands between the base and the cut."""
    score = scores[stage][domain]
    means = score.means()
    found = {"domain": domain, "perplexity": means["perplexity"], "kl_nats": means["kl_nats"]}
    if not stage.startswith("distilled"):
        return found | {"recovered": None}
    found |= recovered(scores["pruned"][domain], score)
    if stage == "distilled-w4":
        found |= quantization_extra(scores["distilled"][domain], score, scores["base-w4"][domain])
    return found


def demo(args):
    """The demo base, trained and quantized by the recipes of params.yaml, on the windows that the pipeline made."""
    from compress.corpus import load_windows
    from pipelines.params import load
    from pipelines.precision import fitted

    params = load(ROOT)
    calibration, evaluation, training = (
        load_windows(ROOT / "data" / n) for n in ("calibration", "evaluation", "distillation")
    )
    domains = np.array(evaluation.domains)
    held_out = {
        name: torch.from_numpy(evaluation.tokens[domains == name]).long() for name in sorted(set(evaluation.domains))
    }
    names = {"calibration": "calibration of the demo", "training": "distillation of the demo"}
    texts = Texts(*(torch.from_numpy(w.tokens).long() for w in (calibration, training)), held_out, names)
    distill, (quantize, student) = params.distill["student"], (params.quantize[k] for k in ("awq-w4", "student-awq-w4"))
    for way in args.ways:
        start = STARTS[way]
        recipes = Recipes(start, fitted(distill, device()), quantize, args.repair, student)
        yield from measured("demo base", way, ROOT / "models" / "base", texts, recipes, not args.shared)


def smollm2(args):
    """SmolLM2-135M, a quarter of whose decoder goes."""
    from quality_windows import read_windows

    windows = read_windows(args.windows)
    sets = {name: tokens for file in args.training for name, tokens in read_windows(file).items()}
    held_out = {n: w[: args.held_out] for n, w in windows.items() if not n.startswith("calibration")}
    training = torch.cat([sets[name] for name in args.text.split("+")])
    drawn = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[: args.calibration]
    calibration = torch.cat([windows["calibration"], training[drawn]])
    recipes = Recipes(args.prune, args.distill, AwqRecipe(group_size=64), args.repair)
    names = {
        "calibration": f"calibration of quality_windows.py and {args.calibration} of the training's",
        "training": args.text,
    }
    texts = Texts(calibration, training, held_out, names)
    return measured("SmolLM2-135M", args.prune.method, args.model, texts, recipes, not args.shared)


def recipe_of(kind):
    """A recipe out of JSON, over its defaults."""

    def parse(said):
        return kind(json.loads(said))

    return parse


def pruning(said):
    return PRUNING[said["method"]].model_validate_json(json.dumps(said), strict=False)


def distilling(defaults):
    return lambda said: DistillRecipe.model_validate_json(json.dumps(defaults | said), strict=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "smollm2"))
    parser.add_argument("--model", type=Path, help="a model folder")
    parser.add_argument("--windows", type=Path, help="of quality_windows.py")
    parser.add_argument("--training", nargs="+", type=Path, help="of training_windows.py and own_words.py")
    parser.add_argument("--text", default="sotu+shakespeare", help="its sets to train on")
    parser.add_argument(
        "--calibration", type=int, default=0, help="windows of the training text beside those of one domain"
    )
    parser.add_argument("--held-out", type=int, default=64, help="windows a domain")
    parser.add_argument("--prune", type=recipe_of(pruning), default=pruning(QUARTER), help="JSON")
    parser.add_argument("--distill", type=recipe_of(distilling(LONGER)), default=distilling(LONGER)({}), help="JSON")
    parser.add_argument("--repair", type=recipe_of(distilling(REPAIR)), help="JSON, {} for the usual")
    parser.add_argument("--ways", nargs="+", choices=STARTS, default=list(STARTS), help="demo: only these cuts")
    parser.add_argument("--shared", action="store_true", help="others use the machine meanwhile")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prune_distill.json")
    args = parser.parse_args()
    for rows in {"demo": demo, "smollm2": smollm2}[args.what](args):
        table([{key: value for key, value in row.items() if key not in NOT_SHOWN} for row in rows])
        save(args.out, rows, ("model", "way", "stage", "domain"))


if __name__ == "__main__":
    main()
