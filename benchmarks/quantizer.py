"""How good the quantizer is, which of its ingredients pay, how fast it is: three tables, three files of rows.

    python benchmarks/quantizer.py quality --model SMOLLM2 --windows windows.safetensors [--peers PEERS]
    python benchmarks/quantizer.py ablation            # of the demo base, on any machine; or of SmolLM2:
    … ablation --model SMOLLM2 --windows windows.safetensors --training training.safetensors [--domains sotu wikitext2]
    python benchmarks/quantizer.py speed --shapes 1.8b 7b     # a GPU; torchrun --nproc-per-node 2 for two
    python benchmarks/quantizer.py cpu --model SMOLLM2 --windows windows.safetensors

Each prints its rows and writes benchmarks/results/quantizer_WHAT.json as it goes, where it replaces the rows of the
same names and keeps the others. SMOLLM2 and the windows come from quality_windows.py and carry_smollm2.py; PEERS holds
what peers.py made on the same windows. `quality` scores everybody's weights, ours from the stored artifact, with one
evaluator, and stores the scores of each window beside its table (quality_scores.py), so that everybody is paired with
`awq-best` whenever they were measured; `--taken FOLDER` takes in what another machine wrote to its `--out FOLDER`.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

KEYS = {
    "quality": ("recipe", "domain"),
    "ablation": ("model", "recipe", "domain", "seed"),
    "speed": ("shape", "recipe", "layers", "gpus"),
    "cpu": ("recipe", "layout"),
}


def save(path, rows, keys, complete=lambda rows: rows):
    """Rows of the same names replaced, the others kept, and what `complete` makes of all of them."""
    names = {tuple(row[key] for key in keys) for row in rows}
    before = json.loads(path.read_text()) if path.exists() else []
    kept = [row for row in before if tuple(row[key] for key in keys) not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(complete(kept + rows), indent=1) + "\n")


def table(rows):
    """Rows as they come, columns of their keys."""
    heads = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], dict)))
    cells = [[_cell(row.get(key)) for key in heads] for row in rows]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _cell(value):
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KEYS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result")
    parser.add_argument("--model", type=Path, help="a model folder")
    parser.add_argument("--windows", type=Path, help="windows.safetensors of quality_windows.py")
    parser.add_argument("--peers", type=Path, help="what peers.py wrote")
    parser.add_argument("--taken", type=Path, help="quality: take in what this folder holds, measure nothing")
    parser.add_argument("--recipes", nargs="*", help="only these of ours; without a name none")
    parser.add_argument("--training", type=Path, help="ablation: draw calibration from it (training_windows.py)")
    parser.add_argument("--kind", default="sotu", help="ablation: the set of --training that is drawn from")
    parser.add_argument("--num-windows", type=int, default=128, help="ablation: calibration windows of a draw")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="ablation: of draws of a --model's calibration windows"
    )
    parser.add_argument("--domains", nargs="+", help="ablation: held-out sets of --windows, all without it")
    parser.add_argument("--held-out", type=int, help="ablation: only so many windows of each")
    parser.add_argument("--shapes", nargs="+", default=["1.8b", "7b"], help="speed: of random_model.py")
    parser.add_argument("--layers", type=int, help="speed: only so many layers")
    parser.add_argument("--host-gib", type=float, help="speed: under this limit on host memory, kept by the kernel")
    parser.add_argument("--shared", action="store_true", help="others use the GPU meanwhile")
    parser.add_argument("--profile", action="store_true", help="speed: seconds by part of the work")
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="speed: where the models lie")
    parser.add_argument("--keep", action="store_true", help="speed: leave them there; the next program takes them")
    args = parser.parse_args()
    measure, complete = measurement(args.what)
    rows = []
    for some in measure(args):
        save(args.out / f"quantizer_{args.what}.json", some, KEYS[args.what], partial(complete, args.out))
        rows += complete(args.out, some)
    if rows:
        table(rows)


def measurement(what):
    """What measures, some rows at a time, and what completes the rows of a folder."""
    if what in ("speed", "cpu"):
        import quantizer_speed

        return getattr(quantizer_speed, what), lambda _, rows: rows
    if what == "ablation":
        from quantizer_ablation import ablation

        return ablation, lambda _, rows: rows
    from quantizer_quality import completed, quality

    return quality, completed


if __name__ == "__main__":
    main()
