"""Stage `prune`: a model without the decoder layers that matter least."""

from pathlib import Path

import torch

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import load_windows
from compress.prune.depth import block_influence, least_influential, write_without
from compress.quantize.turbomind import require_servable
from pipelines import plots
from pipelines.params import load
from pipelines.progress import show
from pipelines.stage import device, new_artifact, parent, repository_root, run, write_trace


def main(key: str, source: Path, calibration: Path, out: Path, trace: Path) -> None:
    """Writes prune.KEY to OUT and each layer's influence to the folder TRACE."""
    recipe = load(repository_root()).prune[key]
    origin, windows, checkpoint = parent(source), load_windows(calibration), Checkpoint(source)
    counted = None if windows.mask is None else torch.from_numpy(windows.mask)
    tokens = torch.from_numpy(windows.tokens)
    scores = block_influence(checkpoint, tokens, counted=counted, device=device(), progress=show)
    removed = least_influential(scores, recipe.remove_layers, f"prune.{key}")
    config = checkpoint.config.replace(num_hidden_layers=checkpoint.config.num_layers - len(removed))
    require_servable(config, "llama", None, f"prune.{key}")
    said = {**recipe.model_dump(by_alias=True, mode="json"), "removed": removed}
    with new_artifact(
        out, kind="pruned", recipe=said, parents={"from": origin}, data={"calibration": windows.digest}, seed=None,
        origin=origin.origin,
    ) as folder:  # fmt: skip
        write_without(checkpoint, removed, ModelWriter(folder, config, "llama"))
        write_tokenizer(source, folder)
    rows = [{"layer": n, "influence": s, "removed": n in removed} for n, s in enumerate(scores)]
    write_trace(trace, rows, plots.influence)


if __name__ == "__main__":
    run(main)
