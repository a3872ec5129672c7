"""The training loop: the student learns what its teacher says of the next token, on text of the user's choice.

`accelerate` synchronises, so the same loop runs in one process, on the device where the student lies, or in several,
each with the GPU that `accelerate` gives it. Within an update nothing asks the device for a number; losses are heard
some steps later, all at once.
"""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Integer
from torch import Tensor, nn
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from compress.distill.batches import Corpus, divide, order
from compress.distill.learner import Learner
from compress.distill.recipe import DistillRecipe
from compress.distill.teachers import Beside, Teacher
from compress.errors import CompressError
from compress.progress import Progress, silent

HEARD_EVERY = {"cpu": 1, "cuda": 10}  # steps between two looks at the losses


@dataclass(frozen=True)
class Step:
    """Mean loss of one update's tokens, in nats."""

    step: int
    loss_nats: float


def distill_(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Teacher,
    tokens: Integer[Tensor, "windows length"],
    recipe: DistillRecipe,
    progress: Progress = silent,
    counted: Bool[Tensor, "windows length"] | None = None,
) -> list[Step]:
    """Trains what of `student` requires a gradient, in place, on windows of token ids; returns every step's loss.

    `counted` says at which positions the student is to answer as its teacher does; everywhere, where it is not given.
    """
    accelerator = Accelerator()
    device = student.device if accelerator.num_processes == 1 else accelerator.device
    student = student.train().to(device)
    guide = _teacher(teacher, device)
    _require_same_vocabulary(student, guide)
    torch.manual_seed(recipe.seed)
    with _prepared(student, guide, recipe):
        run = _Run(accelerator, device, student, guide, Corpus(tokens.cpu(), _host(counted)), recipe)
        steps = run.all(progress)
    student.eval()
    return steps


class _Run:
    """What one training holds on to."""

    def __init__(
        self,
        accelerator: Accelerator,
        device: torch.device,
        student: PreTrainedModel,
        teacher: Teacher,
        corpus: Corpus,
        recipe: DistillRecipe,
    ) -> None:
        self.accelerator, self.device, self.teacher, self.corpus = accelerator, device, teacher, corpus
        self.recipe = recipe
        learner = Learner(student, recipe.losses, recipe.compile).to(device)
        optimizer = torch.optim.AdamW(
            _groups(learner, recipe.weight_decay), recipe.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
        # The schedule counts updates; prepared, it would step once for each process.
        self.learner, self.optimizer = accelerator.prepare(learner, optimizer, device_placement=[False, False])
        self.order = order(len(corpus.tokens), recipe.batch, recipe.seed)
        self.waiting: list[tuple[int, list[int], Tensor]] = []  # step, windows, loss: not yet heard

    def all(self, progress: Progress) -> list[Step]:
        every = HEARD_EVERY.get(self.device.type, 1)
        steps: list[Step] = []
        for step in progress(range(self.recipe.steps), "step"):
            windows = next(self.order)
            self.waiting.append((step, windows, self.update(windows)))
            if (step + 1) % every == 0 or step + 1 == self.recipe.steps:
                steps += self.heard()
        return steps

    def update(self, windows: list[int]) -> Tensor:
        """One step of the optimiser; this process's share of its loss, not waited for."""
        processes = self.accelerator.num_processes
        parts = divide(windows, self.recipe.accumulate, self.accelerator.process_index, processes)
        total, totals = torch.zeros((), device=self.device), self.corpus.totals(windows)
        for number, mine in enumerate(parts, 1):
            with ExitStack() as stack:
                if number < len(parts):
                    stack.enter_context(self.accelerator.no_sync(self.learner))
                total += self.backward(mine, totals)
        self.accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def backward(self, windows: list[int], totals: tuple[int, int]) -> Tensor:
        # Gradients of several processes are averaged, so each part counts as often as there are processes.
        part = self.corpus.part(windows, totals, self.accelerator.num_processes, self.device)
        with self.cast():
            loss = self.learner(part, self.teacher.says(part.tokens, windows))
        self.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def cast(self) -> torch.autocast:
        # Not accelerate's own: that is a setting of the whole process, and the second recipe in it could not have
        # another.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def heard(self) -> list[Step]:
        """The losses that waited, over all processes; the first that is no number ends the training."""
        waited, self.waiting = self.waiting, []
        mine = torch.stack([loss for *_, loss in waited])
        means = self.accelerator.reduce(mine, "mean").tolist()
        for (step, windows, _), loss in zip(waited, means, strict=True):
            if not torch.isfinite(torch.tensor(loss)):
                raise CompressError(
                    f"step {step}: the loss is {loss} on the batch {self.corpus.digest(windows)[:12]} "
                    f"(windows {', '.join(map(str, windows))}); lower learning_rate or raise warmup_steps"
                )
        return [Step(step, loss) for (step, *_), loss in zip(waited, means, strict=True)]


def _groups(learner: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Of what is trained, matrices decay; norms do not."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


@contextmanager
def _prepared(student: PreTrainedModel, teacher: Teacher, recipe: DistillRecipe) -> Iterator[None]:
    """Layers that are compiled or computed twice while the training lasts, if the recipe says so."""
    models = [student, *([teacher.model] if isinstance(teacher, Beside) else [])]
    layers: list[Any] = list(itertools.chain(*(model.model.layers for model in models))) if recipe.compile else []
    if recipe.checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        if recipe.checkpointing:
            student.gradient_checkpointing_disable()


def _teacher(teacher: PreTrainedModel | Teacher, device: torch.device) -> Teacher:
    return Beside(teacher.eval().to(device)) if isinstance(teacher, PreTrainedModel) else teacher


def _host(counted: Tensor | None) -> Tensor | None:
    return None if counted is None else counted.cpu()


def _require_same_vocabulary(student: PreTrainedModel, teacher: Teacher) -> None:
    ours, theirs = student.config.vocab_size, teacher.vocab_size
    if ours != theirs:
        raise CompressError(f"student: vocabulary of {ours}, the teacher's has {theirs}; distil from its own family")
