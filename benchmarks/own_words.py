"""Token windows in a model's own words, for `benchmarks/prune_distill.py` to train on beside written text.

    python benchmarks/own_words.py SMOLLM2 training.safetensors own.safetensors --windows 4096       # a GPU: minutes

Each begins with the first words of a window of `--text` and goes on by sampling. Beside the file stands what
training_windows.py writes too, with the seconds that the writing took.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from quality_windows import read_windows, store
from quantizer_quality import device, device_name

from compress.checkpoint.load import load_model
from compress.distill.generate import generate
from compress.distill.recipe import GenerateRecipe


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("training", type=Path, help="of training_windows.py")
    parser.add_argument("out", type=Path, help="a .safetensors file")
    parser.add_argument("--text", default="sotu+shakespeare", help="its sets whose windows lend their first words")
    parser.add_argument("--windows", type=int, default=4096)
    parser.add_argument("--prompt-tokens", type=int, default=2, help="of each window, with which it begins")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1: likelier words")
    parser.add_argument("--batch", type=int, default=2048, help="windows that are written at once")
    parser.add_argument("--seed", type=int, default=0, help="of the order of beginnings and of what is drawn")
    parser.add_argument("--name", default="own", help="of the set; another one where two files are trained on")
    args = parser.parse_args()
    sets = read_windows(args.training)
    prompts = torch.cat([sets[name] for name in args.text.split("+")])
    prompts = prompts[torch.randperm(len(prompts), generator=torch.Generator().manual_seed(args.seed))]
    recipe = GenerateRecipe(
        windows=args.windows, length=prompts.shape[1], prompt_tokens=args.prompt_tokens, temperature=args.temperature,
        batch=args.batch, precision="bf16", seed=args.seed,
    )  # fmt: skip
    began = time.perf_counter()
    own = generate(load_model(args.model, device=device()), prompts, recipe).numpy()
    elapsed_s = round(time.perf_counter() - began, 1)
    about = {"text": args.text, "elapsed_s": elapsed_s, "device": device_name(), **recipe.model_dump()}
    store({args.name: own}, {args.name: about}, args.out)
    print(f"{args.out}: {args.windows} windows in {elapsed_s} s")


if __name__ == "__main__":
    main()
