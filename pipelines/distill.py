"""Stage `distill`: a student trained to answer as its teacher does; a 4-bit student stays in its format.

`accelerate launch -m pipelines.distill …` spreads it over GPUs, by DDP or FSDP. Killed, it goes on where it was last
saved, and a teacher's cache behind the last window that is there; the cache stays for this student's next training.
"""

import glob
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from pydantic import JsonValue
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import write_model
from compress.corpus import load_windows
from compress.distill.cache import cached, fill
from compress.distill.quantized import load_quantized, stored_format, write_quantized
from compress.distill.recipe import DistillRecipe
from compress.distill.room import room_for_teacher, room_to_train
from compress.distill.teachers import Beside, Teacher
from compress.distill.train import distill_
from compress.distill.vocabulary import require_same_tokenizer
from compress.progress import silent
from pipelines import plots
from pipelines.live import live
from pipelines.params import load
from pipelines.precision import fitted
from pipelines.progress import show, showing
from pipelines.stage import device, new_artifact, parent, repository_root, run, versions, write_trace
from registry.hashing import sha256_json
from registry.manifest import Kind, require_free


def main(key: str, source: Path, teacher: Path, text: Path, out: Path, trace: Path) -> None:
    """Writes distill.KEY to OUT and the loss of every step to the folder TRACE."""
    for folder in (out, trace):
        require_free(folder)  # now, and not when the training is done
    processes = PartialState()
    place = device(processes.local_process_index)
    recipe = fitted(load(repository_root()).distill[key], place)
    parents, windows = {"from": parent(source), "teacher": parent(teacher)}, load_windows(text)
    require_same_tokenizer(source, teacher)
    train = recipe.train
    if train is not None:
        stored_format(Checkpoint(source))  # now, and not when the teacher has run
    described = recipe.model_dump(by_alias=True, mode="json")
    digests = {role: manifest.digest for role, manifest in parents.items()}
    inputs: list[JsonValue] = [dict(digests), windows.digest, dict(versions())]
    kept = _kept(out, "training", [described, *inputs])
    said = _kept(out, "teacher", [described["cache"], recipe.precision, digests["teacher"], *inputs[1:]])
    tokens = torch.from_numpy(windows.tokens).long()
    guide = _teacher(teacher, tokens, recipe, place, said)
    with room_to_train(recipe):
        student = load_model(source, device=place) if train is None else load_quantized(source, train, place)
    counted = None if windows.predicts is None else torch.from_numpy(windows.predicts)
    first = processes.is_main_process
    with live(repository_root(), key, described, tokens=recipe.batch * tokens.shape[1], quiet=not first) as watch:
        steps = distill_(
            student, guide, tokens, recipe, counted=counted, watch=watch, kept=kept,
            progress=showing(recipe.batch * tokens.shape[1], "tokens") if first else silent,
        )  # fmt: skip
    if not first:
        return
    kind: Kind = "distilled" if train is None else "repaired"
    with new_artifact(
        out, kind=kind, recipe=described, parents=parents,
        data={recipe.data: windows.digest}, seed=recipe.seed, origin=parents["from"].origin,
    ) as folder:  # fmt: skip
        if train is None:
            write_model(student, Checkpoint(source).config, folder)
        else:
            write_quantized(student, source, folder)
        write_tokenizer(source, folder)
    write_trace(trace, [{k: v for k, v in asdict(step).items() if v is not None} for step in steps], plots.loss)
    shutil.rmtree(kept, ignore_errors=True)


def _teacher(folder: Path, tokens: Tensor, recipe: DistillRecipe, place: str, said: Path) -> Teacher:
    """The teacher beside its student, or what it said, onto the disk."""
    on_gpu = torch.device(place).type == "cuda"
    dtype = torch.bfloat16 if recipe.precision == "bf16" and on_gpu else torch.float32
    model = load_model(folder, dtype)
    if recipe.cache is None:
        with room_to_train(recipe):
            return Beside.of(model, torch.device(place))
    processes = PartialState()
    share = processes.process_index, processes.num_processes
    with room_for_teacher(recipe):
        fill(said, model.to(place), tokens, recipe, show if processes.is_main_process else silent, share)
    processes.wait_for_everyone()
    return cached(said, model.lm_head.weight.detach(), recipe.cache)


def _kept(out: Path, what: str, inputs: Sequence[JsonValue]) -> Path:
    """Where a training's state lies, or what its teacher said; what was kept of other inputs is swept away."""
    ours = out.with_name(f".{out.name}.{what}-{sha256_json(list(inputs))[:16]}")
    for stale in set(out.parent.glob(f".{glob.escape(out.name)}.{what}-*")) - {ours}:
        shutil.rmtree(stale, ignore_errors=True)
    return ours


if __name__ == "__main__":
    run(main)
