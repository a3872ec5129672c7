"""Token windows to train on for `benchmarks/qad.py`: whole texts of several domains, none of them held out.

    python benchmarks/qad_windows.py SMOLLM2 CORPORA training.safetensors

The held-out windows are quality_windows.py's: of other documents in each domain, and of another package for `code`.
A text is encoded whole, without BOS, and cut into windows without overlap, as many as `NUM_WINDOWS` of them, drawn by
seed. Beside the file stands a JSON of the same name with source, seed, count and the sha256 of the ids.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from quality_windows import LENGTH, Source, digest, draw, python_source
from safetensors.numpy import save_file
from tokenizers import Tokenizer

NUM_WINDOWS = 1500
CODE = "werkzeug==3.1.3"  # the held-out code is of another package
TEXTS = {
    "sotu": "sotu.train.txt",
    "wikitext2": "wikitext2.validation.txt",
    "sanguo": "sanguo.train.txt",
    "shakespeare": "tinyshakespeare.txt",
    "code": CODE,
}


def main() -> None:
    """Writes the windows and what describes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with tokenizer.json")
    parser.add_argument("corpora", type=Path, help="folder that get_corpora.sh filled")
    parser.add_argument("out", type=Path, help="a .safetensors file")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    sets, said = {}, {}
    for seed, (name, place) in enumerate(TEXTS.items(), 100):
        text = python_source(CODE) if place == CODE else (args.corpora / place).read_text("utf8")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        source = Source(name, place, min(NUM_WINDOWS, len(ids) // LENGTH), seed)
        sets[name] = draw(ids, source, LENGTH).astype(np.uint16)
        said[name] = {**asdict(source), "length": LENGTH, "sha256": digest(sets[name])}
        print(f"{name:12} {len(sets[name])} x {LENGTH}  {said[name]['sha256'][:12]}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(sets, args.out)
    args.out.with_suffix(".json").write_text(json.dumps(said, indent=2) + "\n", "utf8")
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
