"""What each way to 4 bits costs the demo base, on the same windows and in one run: ours, its parts, and LMDeploy's own.

    dvc repro fetch corpus && python benchmarks/demo_recipes.py
    … --lmdeploy-python PYTHON --lmdeploy-script SCRIPT     # rows of LMDeploy's auto_awq as well

LMDeploy's rows are made by LMDeploy's own program, run by an interpreter that has it (SCRIPT takes --model --out
--calib and --no-search, and replaces only its loader of hub data sets); without them its row stays as it was. Every row
is measured from the folder that was written. Writes benchmarks/results/demo_recipes.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/serving.py would stand before the package

import torch
import typer
from rich.console import Console
from rich.table import Table

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.corpus import Windows, load_windows
from compress.evaluate.compare import compare_models
from compress.quantize.recipe import AwqRecipe, Gptq, Nearest
from compress.quantize.walk import quantize_model
from pipelines.params import load

RESULT = ROOT / "benchmarks" / "results" / "demo_recipes.json"
BASE = ROOT / "models" / "base"
PLAIN = Nearest(method="nearest")
NAME = "awq-w4"  # of params.yaml: what the parts are parts of


def recipes() -> dict[str, AwqRecipe]:
    """The demo's own recipe and the way to it, a part after the other."""
    whole = load(ROOT).quantize[NAME]
    assert isinstance(whole, AwqRecipe)

    def with_(**settings: object) -> AwqRecipe:
        return whole.model_copy(update=settings)

    return {
        "rtn": with_(scale=None, clip=None, feedback=None, rounding=PLAIN),
        "scale": with_(clip=None, feedback=None, rounding=PLAIN),
        "scale + clip": with_(feedback=None, rounding=PLAIN),
        "scale + clip + gptq": with_(feedback=None, rounding=Gptq(method="gptq", refine=0)),
        "… + feedback": with_(rounding=Gptq(method="gptq", refine=0)),
        f"… + refinement ({NAME})": whole,
    }


def ours(recipe: AwqRecipe, calibration: Windows, out: Path) -> Path:
    """The base quantized by one of our recipes."""
    out.mkdir()
    checkpoint = Checkpoint(BASE)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), "llama")
    quantize_model(checkpoint, torch.from_numpy(calibration.tokens), recipe, writer)
    return out


def lmdeploys(python: Path, script: Path, calibration: Windows, out: Path) -> Path:
    """The base quantized by LMDeploy's auto_awq, on the same windows.

    Its --search-scale is measured on a GPU (quantizer.py): on a CPU it searches on weights that it has altered.
    """
    tokens = out.with_suffix(".pt")
    torch.save(torch.from_numpy(calibration.tokens).long(), tokens)
    command = [python, script, "--model", BASE, "--out", out, "--calib", tokens, "--no-search", "--dtype", "float32"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


def measured(folder: Path, evaluation: Windows) -> dict[str, float]:
    """Metrics of a written model against the base."""
    tokens = torch.from_numpy(evaluation.tokens).long()
    return dict(compare_models(load_model(folder), load_model(BASE), tokens).means())


def main(
    lmdeploy_python: Annotated[Path | None, typer.Option(help="an interpreter that can import lmdeploy")] = None,
    lmdeploy_script: Annotated[Path | None, typer.Option(help="a program that runs its auto_awq")] = None,
) -> None:
    """Measures every recipe and prints the table."""
    calibration, evaluation = (load_windows(ROOT / "data" / name) for name in ("calibration", "evaluation"))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        made = {name: ours(recipe, calibration, Path(temporary) / name) for name, recipe in recipes().items()}
        if lmdeploy_python and lmdeploy_script:
            out = Path(temporary) / "lmdeploy"
            made["lmdeploy auto_awq"] = lmdeploys(lmdeploy_python, lmdeploy_script, calibration, out)
        for name, folder in made.items():
            rows.append({"recipe": name, **measured(folder, evaluation)})
    before = json.loads(RESULT.read_text("utf8")) if RESULT.exists() else []
    rows += [row for row in before if row["recipe"] not in made]  # LMDeploy's, where it was not run again
    rtn = next(row["kl_nats"] for row in rows if row["recipe"] == "rtn")
    rows = [{**row, "closed_of_rtn": 1 - row["kl_nats"] / rtn} for row in rows]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    show(rows)


def show(rows: list[dict[str, float]]) -> None:
    """The table."""
    table = Table("recipe", "perplexity", "KL, nats", "top-1 as base", "of rtn's KL closed")
    for row in rows:
        values = (row["perplexity"], row["kl_nats"], row["top1_agreement"], row["closed_of_rtn"])
        table.add_row(str(row["recipe"]), *(f"{value:.4f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
