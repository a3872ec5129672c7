"""Where a training stands, in one file that replaces the one before it: a killed run goes on from there.

Tensors lie there under their names in the whole model, however many processes each held a part; what is no tensor lies
beside them as JSON. Nothing is pickled, so nothing in the file can run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from compress.checkpoint.whole_file import write_whole
from compress.errors import CompressError

FILE = "training.safetensors"
_WHOLE: dict[str, Any] = {"full_state_dict": True, "ignore_frozen_params": True}
MODEL, OPTIMIZER, BEST, RNG = "model.", "optimizer.", "best.", "rng."


@dataclass
class Saved:
    """Tensors by name and everything else."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def weights(learner: nn.Module) -> dict[str, Tensor]:
    """What is trained, whole and on the host; empty in all processes but the first, where they share it."""
    found: dict[str, Any] = get_model_state_dict(learner, options=StateDictOptions(**_WHOLE, cpu_offload=True))
    return {name: tensor.clone() for name, tensor in found.items()}


def load_weights_(learner: nn.Module, found: dict[str, Tensor]) -> None:
    """Puts trained weights back."""
    set_model_state_dict(learner, dict[str, Any](found), options=StateDictOptions(**_WHOLE, strict=False))


def gather(learner: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None) -> Saved:
    """Weights, the optimiser's moments, the best weights so far and the states of chance; all processes take part."""
    options = StateDictOptions(**_WHOLE, cpu_offload=True)
    whole: dict[str, Any] = dict(get_optimizer_state_dict(learner, optimizer, options=options))
    tensors = {MODEL + name: t for name, t in weights(learner).items()} | _chance()
    tensors |= {f"{OPTIMIZER}{n}/{k}": t for n, moments in whole.get("state", {}).items() for k, t in moments.items()}
    tensors |= {BEST + name: t for name, t in (best or {}).items()}
    return Saved(tensors, {"groups": whole.get("param_groups", [])})


def restore_(saved: Saved, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Undoes `gather`."""
    load_weights_(learner, saved.part(MODEL))
    moments: dict[str, dict[str, Tensor]] = {}
    for place, tensor in saved.part(OPTIMIZER).items():
        name, kind = place.rsplit("/", 1)
        moments.setdefault(name, {})[kind] = tensor
    whole: dict[str, Any] = {"state": moments, "param_groups": saved.about["groups"]}
    set_optimizer_state_dict(learner, optimizer, whole, options=StateDictOptions(**_WHOLE))
    chance = saved.part(RNG)
    torch.set_rng_state(chance.pop("cpu"))
    if chance and torch.cuda.is_available():
        torch.cuda.set_rng_state(chance["cuda"])


def write(folder: Path, saved: Saved) -> None:
    """Replaces what the folder held; on a full disk that stays."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"about": json.dumps(saved.about)}
    write_whole(folder / FILE, saved.tensors, about, kept="it goes on from the state before")


def read(folder: Path) -> Saved | None:
    """What was written last, if anything was."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return Saved(tensors, json.loads(file.metadata()["about"]))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CompressError(f"{path}: no state of a training ({error}); remove it and run again") from None


def _chance() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {RNG + name: state for name, state in states.items()}
