"""Whether two makings of a layer are as close to the parent: what each of their linears loses on the same text."""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.runner import LayerRunner
from compress.explain.fold import folds
from compress.explain.probe import Probe
from compress.quantize.sites import LINEARS
from compress.quantize.walk import set_stored_

Makings = Sequence[Mapping[str, Tensor]]  # of one layer, their tensors under canonical names


@torch.no_grad()
def output_errors(
    parent: Checkpoint, tokens: Integer[Tensor, "windows length"], made: Mapping[int, Makings], device: str
) -> dict[int, list[dict[str, float]]]:
    """For each making of each layer, by linear, ‖ΔW x‖² / ‖W x‖² on the parent's inputs."""
    runner = LayerRunner(parent, device, batch=8)
    hidden, found = runner.embed(tokens), {}
    for n in range(max(made) + 1):
        layer = runner.load(n)
        makings = made.get(n, ())
        changes = [_changes(layer, tensors, n, parent.config) for tensors in makings]
        probe = Probe(layer, {name: {str(i): one[name] for i, one in enumerate(changes)} for name in LINEARS})
        with probe.watching():
            hidden = runner.run(layer, hidden)
        if n in made:
            found[n] = [{name: probe.relative(name, str(i)) for name in LINEARS} for i in range(len(makings))]
        runner.release(n)
    return found


def _changes(layer: nn.Module, tensors: Mapping[str, Tensor], n: int, config: ModelConfig) -> dict[str, Tensor]:
    """What a making has done to each linear's weight, what it folded undone."""
    variant = copy.deepcopy(layer)
    set_stored_(variant, dict(tensors), n)
    folded = folds(layer, variant, config)

    def weight(module: nn.Module, name: str) -> Tensor:
        return module.get_parameter(f"{name}.weight").data

    return {name: folded[name].undone(weight(variant, name)) - weight(layer, name) for name in LINEARS}
