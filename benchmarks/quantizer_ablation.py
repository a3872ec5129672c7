"""What each ingredient is worth: the divergence on held-out text with one of them left out, over draws of calibration.

Most are a setting of the recipe. Those without one, because leaving them out serves nobody, are switched off here in
the quantizer itself. Learned rounding, which the default has not, is added instead of left out.
"""

import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from quality_scores import interval
from quality_windows import read_windows
from quantizer_quality import DEMO, NEAREST, PLAIN, ROOT, device, device_name, made

from compress.checkpoint.load import load_model
from compress.evaluate.compare import compare_models
from compress.quantize import layer as layers
from compress.quantize.factor import Factor
from compress.quantize.recipe import AwqRecipe, Gptq, Learned
from compress.quantize.stream import Stream

SEEDS = 3


@contextmanager
def o_unscaled():
    """While this is open, the input of o has the scale 1: nothing reaches through v's rows."""
    tie_for = layers.tie_for

    def tie(site, config):
        return torch.ones_like if site.producer == "self_attn.v_proj" else tie_for(site, config)

    with mock.patch.object(layers, "tie_for", tie):
        yield


@contextmanager
def columns_as_they_come():
    """While this is open, columns are rounded from the first to the last."""

    def factorize(H, place):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
        return Factor(torch.arange(len(H), device=H.device), torch.linalg.cholesky(inverse, upper=True))

    with mock.patch.object(layers, "factorize", factorize):
        yield


@contextmanager
def float_inputs():
    """While this is open, linears are calibrated on what the float model gives them, whatever was rounded before."""
    measure, move = layers.LayerQuantizer._measure, Stream.move_

    def measured(self, layer, original, number, place):
        self.rounded.original = original
        return measure(self, original, original, number, place)

    def moved(self, layer, *steps):
        move(self, self.original, *steps)

    with mock.patch.object(layers.LayerQuantizer, "_measure", measured), mock.patch.object(Stream, "move_", moved):
        yield


@dataclass(frozen=True)
class Variant:
    """What a recipe has instead of its defaults, and what is switched off around it."""

    settings: dict = field(default_factory=dict)
    switch: object = ExitStack  # which does nothing


WHOLE = "whole"
VARIANTS = {
    WHOLE: Variant(),
    "no scales": Variant({"scale": None}),
    "no o scales": Variant(switch=o_unscaled),
    "no clipping": Variant({"clip": None}),
    "no feedback": Variant({"feedback": None}),
    "no quantized inputs": Variant({"feedback": None}, float_inputs),
    "no refinement": Variant({"rounding": Gptq(method="gptq", refine=0)}),
    "no compensation": Variant({"rounding": NEAREST}),
    "no column order": Variant(switch=columns_as_they_come),
    "less damping": Variant({"damping": 0.05}),
    "plain rounding": Variant(PLAIN),
    "and learned rounding": Variant({"rounding": Learned(method="learned")}),
}


@dataclass(frozen=True)
class Case:
    """A model, the group size of its recipes, calibration text by seed, and held-out windows by domain."""

    name: str
    model: Path
    group_size: int
    draws: dict
    held_out: dict


def ablation(args):
    """After each variant its rows, one a domain: three draws of calibration text, the whole recipe first on each."""
    names = [WHOLE, *(name for name in args.recipes or VARIANTS if name != WHOLE)]
    with tempfile.TemporaryDirectory() as work:
        case = files(args) if args.model else demo(Path(work))
        base = load_model(case.model, device=device())
        for seed, calibration in case.draws.items():
            whole = None
            for name in names:
                out = Path(work, f"{name}-{seed}")
                recipe = AwqRecipe(group_size=case.group_size, **VARIANTS[name].settings)
                with VARIANTS[name].switch():
                    seconds = made(case.model, calibration, recipe, out)
                kl = losses(load_model(out, device=device()), base, case.held_out)
                whole = kl if name == WHOLE else whole
                said = {"elapsed_s": round(seconds, 1), "device": device_name()}
                said |= {"windows": len(calibration), "alone": not args.shared}
                yield [
                    {"model": case.name, "recipe": name, "domain": domain, "seed": seed}
                    | figures(kl[domain], whole[domain])
                    | said
                    for domain in case.held_out
                ]


def losses(variant, base, held_out):
    """The divergence of each window, by domain."""
    return {
        domain: compare_models(variant, base, tokens.to(device())).kl_nats.cpu().double().numpy()
        for domain, tokens in held_out.items()
    }


def figures(kl, whole):
    """Means over windows with 95 % intervals, the difference from the whole recipe paired by window."""
    low, high = interval(kl)
    above_low, above_high = interval(kl - whole)
    return {
        "kl_nats": float(kl.mean()), "kl_low": low, "kl_high": high,
        "kl_above_whole": float((kl - whole).mean()),
        "kl_above_whole_low": above_low, "kl_above_whole_high": above_high,
    }  # fmt: skip


def files(args):
    """A model folder with windows of quality_windows.py: groups of 64, as `quality` has them."""
    windows = read_windows(args.windows)
    every = [name for name in windows if not name.startswith("calibration")]
    if unknown := [name for name in args.domains or [] if name not in every]:
        raise SystemExit(f"--domains: {unknown[0]}: not held out in {args.windows}; there are {', '.join(every)}")
    pool = read_windows(args.training)[args.kind] if args.training else windows["calibration"]
    held_out = {name: windows[name][: args.held_out] for name in args.domains or every}
    draws = {seed: drawn(pool, args.num_windows, seed) for seed in args.seeds}
    return Case(args.model.name, args.model, 64, draws, held_out)


def drawn(pool, count, seed):
    """`count` windows; refuses a pool of which every draw would be nearly the same."""
    if len(pool) < 2 * count:
        raise SystemExit(
            f"--num-windows: {count} of {len(pool)} calibration windows are nearly the same in every draw; "
            f"give {len(pool) // 2}, or more windows with --training"
        )
    return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]]


def demo(work):
    """The demo base, on any machine in minutes."""
    from tokenizers import Tokenizer

    from compress.checkpoint.tokenizer import write_tokenizer
    from compress.corpus import CorpusRecipe, make_windows, read_documents

    write_tokenizer(DEMO / "base", work)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))

    def windows(name, count, seed):
        recipe = CorpusRecipe(source=f"examples/demo/text/{name}.jsonl", windows=count, length=256, seed=seed)
        return torch.from_numpy(make_windows(read_documents(recipe, ROOT), tokenizer, recipe).tokens).long()

    draws = {seed: windows("calibration", 128, seed) for seed in range(SEEDS)}
    return Case("demo", DEMO / "base", 128, draws, {"evaluation": windows("evaluation", 64, 0)})
