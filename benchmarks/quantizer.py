"""How good the quantizer is, which of its ingredients pay, how fast it is: three tables, three files of rows.

    python benchmarks/quantizer.py quality --model SMOLLM2 --windows windows.safetensors [--peers PEERS]
    python benchmarks/quantizer.py ablation            # of the demo base, on any machine
    python benchmarks/quantizer.py speed --shapes 1.8b 7b     # a GPU; torchrun --nproc-per-node 2 for two
    python benchmarks/quantizer.py cpu --model SMOLLM2 --windows windows.safetensors

Each prints its rows and writes benchmarks/results/quantizer_WHAT.json, where it replaces the rows of the same names and
keeps the others. SMOLLM2 and the windows come from quality_windows.py and carry_smollm2.py; PEERS holds what peers.py
made on the same windows. `quality` scores everybody's weights, ours from the stored artifact, with one evaluator.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

KEYS = {
    "quality": ("recipe", "domain"),
    "ablation": ("recipe", "seed"),
    "speed": ("shape", "recipe", "layers", "gpus"),
    "cpu": ("recipe",),
}


def save(path, rows, keys):
    """Rows of the same names replaced, the others kept."""
    names = {tuple(row[key] for key in keys) for row in rows}
    before = json.loads(path.read_text()) if path.exists() else []
    kept = [row for row in before if tuple(row[key] for key in keys) not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept + rows, indent=1) + "\n")


def table(rows):
    """Rows as they come, columns of their keys."""
    heads = [key for key in rows[0] if not isinstance(rows[0][key], dict)]
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
    parser.add_argument("--recipes", nargs="*", help="only these of ours; without a name none")
    parser.add_argument("--shapes", nargs="+", default=["1.8b", "7b"], help="speed: of random_model.py")
    parser.add_argument("--layers", type=int, help="speed: only so many layers")
    parser.add_argument("--host-gib", type=float, help="speed: the limit on host memory that was set")
    parser.add_argument("--shared", action="store_true", help="speed: others use the GPU meanwhile")
    parser.add_argument("--profile", action="store_true", help="speed: seconds by part of the work")
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="speed: where the models lie")
    args = parser.parse_args()
    if args.what == "speed":
        from quantizer_speed import speed as measure
    elif args.what == "cpu":
        from quantizer_speed import cpu as measure
    else:
        from quantizer_quality import ablation, quality

        measure = {"quality": quality, "ablation": ablation}[args.what]
    rows = measure(args)
    if rows:
        table(rows)
        save(args.out / f"quantizer_{args.what}.json", rows, KEYS[args.what])


if __name__ == "__main__":
    main()
