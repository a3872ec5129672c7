"""The training loop: the student learns the teacher's distribution over the next token, on text of the user's choice.

`accelerate` synchronises, so the same loop runs in one process, on the device where the student lies, or in several,
each with the GPU that `accelerate` gives it. The student, its loss and its head are one module, because that is what
data-parallel wrappers see.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from compress.distill.divergence import divergence
from compress.distill.recipe import DistillRecipe
from compress.errors import CompressError
from compress.progress import Progress, silent


@dataclass(frozen=True)
class Step:
    """Mean loss of one update's tokens, in nats."""

    step: int
    loss_nats: float


class Student(nn.Module):
    """A model that answers with its divergence from a teacher's final hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Integer[Tensor, "windows length"],
        ht: Float[Tensor, "windows length teacher_hidden"],
        Wt: Float[Tensor, "vocab teacher_hidden"],
        counts: Bool[Tensor, "windows length"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean divergence in nats over the positions that count, all where that is not said."""
        hs, ht = (h.flatten(0, 1) if counts is None else h[counts] for h in (final_hidden(self.model, tokens), ht))
        return divergence(hs, self.model.lm_head.weight, ht, Wt).mean()


def final_hidden(model: PreTrainedModel, tokens: Integer[Tensor, "windows length"]) -> Float[Tensor, "..."]:
    """What the output head reads, (windows, length, hidden)."""
    hidden: Tensor = model.model(tokens, use_cache=False).last_hidden_state
    return hidden


def distill_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Integer[Tensor, "windows length"],
    recipe: DistillRecipe,
    progress: Progress = silent,
    counted: Bool[Tensor, "windows length"] | None = None,
) -> list[Step]:
    """Trains `student` in place on windows of token ids and returns the loss of every step.

    `counted` says at which positions the student is to answer as its teacher does; everywhere, where it is not given.
    """
    _require_same_vocabulary(student, teacher)
    torch.manual_seed(recipe.seed)
    accelerator = Accelerator()
    device = student.device if accelerator.num_processes == 1 else accelerator.device
    student, teacher = student.train().to(device), teacher.eval().to(device)
    # Not accelerate's own: that is a setting of the whole process, and the second recipe in it could not have another.
    cast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    learner = Student(student)
    optimizer = torch.optim.AdamW(_groups(learner, recipe.weight_decay), recipe.learning_rate, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
    # The schedule counts updates; prepared, it would step once for each process.
    learner, optimizer = accelerator.prepare(learner, optimizer, device_placement=[False, False])  # placed above
    tokens, counted = tokens.to(device), None if counted is None else counted.to(device)
    batches = _batches(len(tokens), recipe, accelerator)
    steps = []
    for step in progress(range(recipe.steps), "step"):
        chosen = next(batches)
        batch, counts = tokens[chosen], None if counted is None else counted[chosen]
        with cast:
            with torch.no_grad():
                ht = final_hidden(teacher, batch)
            loss = learner(batch, ht, teacher.lm_head.weight.detach(), counts)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learner.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.append(Step(step, _finite(loss.item(), step)))
    student.eval()
    return steps


def _groups(learner: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms do not."""
    parameters = list(learner.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _batches(count: int, recipe: DistillRecipe, accelerator: Accelerator) -> Iterator[list[int]]:
    """Each process's share of every step's windows; all windows are seen once before any is seen twice."""
    generator = torch.Generator().manual_seed(recipe.seed)
    order: list[int] = []
    while True:
        while len(order) < recipe.batch * accelerator.num_processes:
            order += torch.randperm(count, generator=generator).tolist()
        taken, order = (
            order[: recipe.batch * accelerator.num_processes],
            order[recipe.batch * accelerator.num_processes :],
        )
        yield taken[accelerator.process_index :: accelerator.num_processes]


def _finite(loss: float, step: int) -> float:
    if loss != loss or loss == float("inf"):  # noqa: PLR0124 - NaN is what differs from itself
        raise CompressError(f"step {step}: the loss is {loss}; lower learning_rate or raise warmup_steps")
    return loss


def _require_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise CompressError(f"student: vocabulary of {ours}, the teacher's has {theirs}; distil from its own family")
