"""Distillation: a student learns what its teacher says of the next token, on text of the user's choice.

`accelerate` synchronises, so the same loop runs in one process, on the device where the student lies, or in several,
each with the GPU that `accelerate` gives it: by DDP, or by FSDP, which divides the gradients and the optimiser's state
too. Each holds the whole student once, before that, and its own teacher.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from jaxtyping import Bool, Integer
from torch import Tensor
from transformers import PreTrainedModel

from compress.distill import state
from compress.distill.batches import Corpus
from compress.distill.compiled import compiled, resolved
from compress.distill.learner import Learner
from compress.distill.loop import Loop, Step, Watch
from compress.distill.recipe import DistillRecipe
from compress.distill.room import room_to_train
from compress.distill.teachers import Beside, Teacher
from compress.errors import CompressError
from compress.progress import Progress, silent


def unwatched(step: Step) -> None:
    """Tells nobody."""


def distill_(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Teacher,
    tokens: Integer[Tensor, "windows length"],
    recipe: DistillRecipe,
    progress: Progress = silent,
    counted: Bool[Tensor, "windows length"] | None = None,
    watch: Watch = unwatched,
    kept: Path | None = None,
) -> list[Step]:
    """Trains what of `student` requires a gradient, in place, on windows of token ids; returns every step's loss.

    `counted` says at which positions the student is to answer as its teacher does; everywhere, where it is not given.
    In the folder `kept` lies what a killed run goes on from. `watch` hears of each step, in the first process only.
    Divided by FSDP, the student is whole again at the end in the first process.
    """
    with room_to_train(recipe):
        return _distill_(student, teacher, tokens, recipe, progress, counted, watch, kept)


def _distill_(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Teacher,
    tokens: Tensor,
    recipe: DistillRecipe,
    progress: Progress,
    counted: Tensor | None,
    watch: Watch,
    kept: Path | None,
) -> list[Step]:
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
    device = student.device if accelerator.num_processes == 1 else accelerator.device
    recipe, student = resolved(recipe, device), student.train().to(device)
    guide = Beside.of(teacher, device) if isinstance(teacher, PreTrainedModel) else teacher
    _require_same_vocabulary(student, guide)
    torch.manual_seed(recipe.seed)
    learner = Learner(student, guide, recipe).to(device)
    corpus = Corpus(tokens.cpu(), None if counted is None else counted.cpu())
    models = [student, *([guide.model] if isinstance(guide, Beside) else [])]
    with compiled(*models) if recipe.compile else nullcontext():
        loop = Loop(accelerator, device, learner, guide, corpus, recipe, watch, kept)
        steps = loop.run(progress)
    _make_whole_(student, loop.learner, accelerator)
    student.eval()
    return steps


def _make_whole_(student: PreTrainedModel, learner: torch.nn.Module, accelerator: Accelerator) -> None:
    """Undoes FSDP's division of the parameters, in the first process."""
    if "FSDP" not in str(accelerator.distributed_type):
        return
    for name, tensor in state.weights(learner).items():
        module, leaf = name.removeprefix("model.").rsplit(".", 1)
        if name.startswith("model."):
            student.get_submodule(module)._parameters[leaf] = torch.nn.Parameter(tensor)


def _require_same_vocabulary(student: PreTrainedModel, teacher: Teacher) -> None:
    ours, theirs = student.config.vocab_size, teacher.vocab_size
    if ours != theirs:
        raise CompressError(f"student: vocabulary of {ours}, the teacher's has {theirs}; distil from its own family")
