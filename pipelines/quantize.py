"""Stage `quantize`: a model's linears in 4 bits, in the format and the shapes that TurboMind serves.

`torchrun --nproc-per-node 2 -m pipelines.quantize …` spreads it over two GPUs. Killed, it goes on where it was.
"""

import glob
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import JsonValue

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import load_windows
from compress.quantize.journal import Journal
from compress.quantize.resources import Resources, place_for_windows
from compress.quantize.turbomind import require_servable
from compress.quantize.walk import LinearError, quantize_model
from compress.quantize.workers import Workers
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import device, made_already, new_artifact, parent, repository_root, run, versions, write_trace
from registry.hashing import sha256_json
from registry.manifest import unfinished


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes quantize.KEY to OUT and what each linear lost to the folder TRACE."""
    recipe = load(repository_root()).quantize[key]
    origin, windows, checkpoint = parent(source), load_windows(calibration), Checkpoint(source)
    config = checkpoint.config.replace(torch_dtype="float16")
    require_servable(config, recipe.layout, recipe.group_size, f"quantize.{key}", recipe.tensor_parallel)
    described = recipe.model_dump(by_alias=True, mode="json")
    if trace.exists() and made_already(out, described, {"from": origin.digest}, {"calibration": windows.digest}):
        return
    workers, tokens = Workers.started(), torch.from_numpy(windows.tokens)
    place = place_for_windows(tokens.shape, config.fields["hidden_size"], recipe, workers, out.parent)
    resources = Resources(device(workers.rank), disk=place, workers=workers)
    made_by: dict[str, JsonValue] = {**versions(), "device": resources.device, "workers": workers.count}
    resume = sha256_json([described, origin.digest, windows.digest, made_by])

    def quantize(folder: Path) -> list[LinearError]:
        workers.wait()
        writer = ModelWriter(folder, config, recipe.layout)
        return quantize_model(checkpoint, tokens, recipe, writer, resources, show, journal)

    journal = Journal(_journal(out, resume))
    if workers.rank:
        quantize(unfinished(out, resume))
        return
    with new_artifact(
        out, kind="quantized", recipe=described, parents={"from": origin},
        data={"calibration": windows.digest}, seed=None, origin=origin.origin, model_format="awq", key=resume,
    ) as folder:  # fmt: skip
        errors = quantize(folder)
        write_tokenizer(source, folder)
        shutil.rmtree(trace, ignore_errors=True)  # of a run that was killed between here and the next line's end
        write_trace(trace, [asdict(error) for error in errors], plots.linear_errors)
    journal.close()


def _journal(out: Path, key: str) -> Path:
    """Where this run's journal lies; those of runs with other inputs are swept away."""
    ours = out.with_name(f".{out.name}.journal-{key[:16]}")
    for stale in set(out.parent.glob(f".{glob.escape(out.name)}.journal-*")) - {ours}:
        shutil.rmtree(stale, ignore_errors=True)
    return ours


if __name__ == "__main__":
    run(main)
