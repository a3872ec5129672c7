"""Do LMDeploy's engines see what transformers sees? InternVL and LLaVA with a 4-bit language model, asked about images.

    python benchmarks/vision.py     # a GPU, torchvision, transformers 5.21, LMDeploy 0.18; small random models

Each folder is taken apart, its language model quantized, and put together again; then TurboMind (InternVL) or
LMDeploy's PyTorch engine (LLaVA, LLaVA-Next) answers questions about images, greedily, and so do our unpacked weights
in this process. Prints and writes to benchmarks/results/vision.json the share of answers that begin with the same
token, and of all tokens up to the first that differs. `--engine transformers` asks this process twice: a look without
a GPU.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_repository import write_base, write_quantized
from vision_models import write_internvl, write_llava, write_llava_next

from compress.checkpoint.vision import give, take
from pipelines.engine import load as load_here
from serving.errors import ServingError
from serving.inprocess import Pipeline
from serving.lmdeploy_engine import load as load_lmdeploy
from serving.profile import EngineProfile, backend
from serving.shape import read_shape

WRITERS = {"InternVL": write_internvl, "LLaVA": write_llava, "LLaVA-Next": write_llava_next}
ENGINES = {"lmdeploy": load_lmdeploy, "transformers": load_here}
NUM_QUESTIONS, NUM_TOKENS = 16, 8


def made(write, root):
    """By name: the folder with its own language model, and with that in 4 bits."""
    whole, language, base, small = halved(write(root / "whole")), root / "language", root / "base", root / "small"
    language.mkdir()
    take(whole, language)
    write_base(language, base)
    write_quantized(base, small)
    folders = {"16 bits": root / "sixteen", "4 bits": root / "four"}
    for folder, inside in zip(folders.values(), (base, small), strict=True):
        folder.mkdir()
        give(whole, inside, folder)
    return folders


def halved(folder):
    """The folder in float16: TurboMind takes no image into a model of float32."""
    for file in folder.glob("*.safetensors"):
        save_file({name: t.half() for name, t in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf8"))
    for section in (config, *(inside for inside in config.values() if isinstance(inside, dict))):
        section.update({key: "float16" for key in ("dtype", "torch_dtype") if key in section})
    (folder / "config.json").write_text(json.dumps(config), "utf8")
    return folder


def questions(folder):
    """Images of noise, and words to go with them."""
    for n in range(NUM_QUESTIONS):
        image = folder / f"{n}.png"
        Image.effect_noise((28 + 8 * n, 40), 20 + 10 * n).convert("RGB").save(image)
        yield f"word{20 + n} word{70 + 3 * n}", image


def answers(load, folder, asked):
    """What a model says to each question, word by word."""
    profile = EngineProfile(cache_max_entry_count=0.1, session_len=128, max_batch_size=1)
    pipe = Pipeline(load(folder, profile))
    said = [pipe(text, images=[image], max_tokens=NUM_TOKENS, temperature=0).text.split() for text, image in asked]
    del pipe
    gc.collect()
    return said


def compared(folder, asked, theirs):
    """How far an engine agrees with this process; or why it takes no such model."""
    ours = answers(load_here, folder, asked)
    found = {"different_answers": len({" ".join(answer) for answer in ours})}
    try:
        return found | agreement(ours, answers(theirs, folder, asked))
    except ServingError as error:
        return found | {"refused": str(error).partition(": ")[2]}


def agreement(ours, theirs):
    """Shares of answers with the same first token, and of tokens before the first that differs."""
    first = sum(a[:1] == b[:1] for a, b in zip(ours, theirs, strict=True)) / len(ours)
    same = sum(common(a, b) for a, b in zip(ours, theirs, strict=True))
    return {"same_first_token": first, "tokens_until_different": same / sum(map(len, ours))}


def common(a, b):
    """How many words two answers have in common before the first that differs."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="lmdeploy")
    parser.add_argument("--models", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "vision.json")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as work:
            root = Path(work)
            folders, asked = made(WRITERS[name], root), list(questions(root))
            for bits, folder in folders.items():
                engine = backend(read_shape(folder)) if args.engine == "lmdeploy" else args.engine
                row = {"model": name, "weights": bits, "engine": engine, "questions": NUM_QUESTIONS}
                row |= compared(folder, asked, ENGINES[args.engine])
                row["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
                rows.append(row)
                print(json.dumps(row), flush=True)
    args.out.write_text(json.dumps(rows, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    main()
