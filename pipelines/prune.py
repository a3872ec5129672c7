"""Stage `prune`: a model with fewer layers, or narrower ones, in sizes that TurboMind loads."""

from dataclasses import replace
from pathlib import Path

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import Windows, load_windows
from compress.prune.prune import Decision, Recipe, Work, decide, place_for_windows, write
from compress.prune.recipe import DepthRecipe
from compress.prune.text import Text
from compress.prune.width import SiteError
from compress.quantize.resources import Resources
from compress.quantize.turbomind import require_servable
from compress.room import room
from pipelines import pruned_plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import Rows, device, new_artifact, parent, repository_root, run, write_trace


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes prune.KEY to OUT and what was measured on the way to the folder TRACE."""
    recipe = load(repository_root()).prune[key]
    origin, windows, checkpoint = parent(source), load_windows(calibration), Checkpoint(source)
    text = _text(windows)
    work = Work(checkpoint, text, _resources(recipe, checkpoint, text, out.parent), f"prune.{key}", show)
    with room(work.place, _remedy(recipe.data, work.resources)):
        decision = decide(work, recipe, out.parent)
        require_servable(decision.config, "llama", None, work.place, recipe.tensor_parallel)
        said = recipe.model_dump(by_alias=True, mode="json")
        made = {"removed": list(decision.removed), "sizes": dict(decision.sizes)}
        with new_artifact(
            out, kind="pruned", recipe=said | made, parents={"from": origin}, data={"calibration": windows.digest},
            seed=None, origin=origin.origin,
        ) as folder:  # fmt: skip
            errors = write(work, recipe, decision, ModelWriter(folder, decision.config, "llama"))
            write_tokenizer(source, folder)
    write_trace(trace, rows(recipe, decision, errors), pruned_plots.pruning)


def _remedy(data: str, resources: Resources) -> str:
    """What helps where a layer and the windows that are in it have no room on the device."""
    at_once = f"{resources.batch} windows lie on the device at a time"
    return f"set TURBOPRESS_DEVICE=cpu, or write a shorter length of the text {data} ({at_once})"


def _text(windows: Windows) -> Text:
    masks = (None if mask is None else torch.from_numpy(mask) for mask in (windows.mask, windows.predicts))
    return Text(torch.from_numpy(windows.tokens), *masks)


def _resources(recipe: Recipe, checkpoint: Checkpoint, text: Text, folder: Path) -> Resources:
    """On disk wait the windows that memory has no room for."""
    folder.mkdir(parents=True, exist_ok=True)
    resources = Resources(device())
    return replace(resources, disk=place_for_windows(recipe, checkpoint.config, text, resources, folder))


def rows(recipe: Recipe, decision: Decision, errors: list[SiteError]) -> Rows:
    """The trace: scores of layers round by round, candidates of a target, output errors of what was cut.

    A score of several layers at once names them all, and `removed` says that it was those which went.
    """
    score = "influence" if isinstance(recipe, DepthRecipe) and recipe.score == "influence" else "kl_nats"
    layers = [
        {"round": number, "layer": scored[0]}
        | ({"layers": list(scored)} if len(scored) > 1 else {})
        | {score: value, "removed": set(scored) <= set(one.removed)}
        for number, one in enumerate(decision.rounds)
        for scored, value in one.scores.items()
    ]
    candidates = [
        {"way": str(one.way), "share": one.way.share, "kl_nats": one.kl_nats, "remove_layers": one.way.remove_layers}
        | dict(one.way.sizes)
        for one in decision.candidates
    ]
    sites = [{"layer": e.layer, "linear": e.linear, "error": e.error, "plain_error": e.plain_error} for e in errors]
    return [*layers, *candidates, *sites]


if __name__ == "__main__":
    run(main)
