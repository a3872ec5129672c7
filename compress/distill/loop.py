"""One training: updates, what is heard of them, held-out windows now and then, a state to go on from.

Within an update nothing asks the device for a number; losses are heard some steps later, all at once.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from compress.distill import state
from compress.distill.batches import Corpus, divide, order
from compress.distill.learner import Learner
from compress.distill.recipe import DistillRecipe
from compress.distill.teachers import Teacher
from compress.errors import CompressError
from compress.progress import Progress

HEARD_EVERY = {"cpu": 1, "cuda": 10}  # steps between two looks at the losses


@dataclass(frozen=True)
class Step:
    """Mean loss of one update's tokens, in nats; that of the held-out windows after it, where it was measured; and the
    rate that the update was made with."""

    step: int
    loss_nats: float
    held_out_nats: float | None = None
    learning_rate: float | None = None


Watch = Callable[[Step], None]


class Loop:
    """What one training holds on to."""

    def __init__(
        self,
        accelerator: Accelerator,
        device: torch.device,
        learner: Learner,
        teacher: Teacher,
        corpus: Corpus,
        recipe: DistillRecipe,
        watch: Watch,
        kept: Path | None,
    ) -> None:
        self.accelerator, self.device, self.teacher, self.corpus = accelerator, device, teacher, corpus
        self.recipe, self.watch, self.kept = recipe, watch, kept
        optimizer = torch.optim.AdamW(
            _groups(learner, recipe.weight_decay), recipe.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
        # The schedule counts updates; prepared, it would step once for each process.
        self.learner, self.optimizer = accelerator.prepare(learner, optimizer, device_placement=[False, False])
        self.training, self.held_out = self._parted()
        self.steps: list[Step] = []
        self.best: dict[str, Tensor] | None = None
        self.waiting: list[tuple[int, list[int], float, Tensor]] = []  # step, windows, rate, loss: not yet heard

    def run(self, progress: Progress) -> list[Step]:
        """All steps that are still to do; afterwards the model has the best step's weights."""
        self._resume()
        start, every = len(self.steps), HEARD_EVERY.get(self.device.type, 1)
        batches = itertools.islice(order(len(self.training), self.recipe.batch, self.recipe.seed), start, None)
        for step in progress(range(start, self.recipe.steps), "step"):
            windows = [self.training[n] for n in next(batches)]
            rate = self.schedule.get_last_lr()[0]
            self.waiting.append((step, windows, rate, self._update(windows)))
            last, asked = step + 1 == self.recipe.steps, self._due(step)
            if (step + 1) % every == 0 or last or any(asked):
                self._hear()
            if asked[0]:
                self._measure()
            if asked[1]:
                self._save()
        if self.best is not None and self._best().step != self.recipe.steps - 1:
            state.load_weights_(self.learner, self.best)
        return self.steps

    def _due(self, step: int) -> tuple[bool, bool]:
        """Whether this step is followed by a look at the held-out windows, and by a state."""
        last, evaluate, save = step + 1 == self.recipe.steps, self.recipe.evaluate, self.recipe.save_every
        measured = evaluate is not None and (last or (step + 1) % evaluate.every == 0)
        return measured, self.kept is not None and save is not None and not last and (step + 1) % save == 0

    def _update(self, windows: list[int]) -> Tensor:
        """One step of the optimiser; this process's part of its loss, not waited for."""
        parts = self._mine(windows, self.recipe.accumulate, "batch")
        total, totals = torch.zeros((), device=self.device), self.corpus.totals(windows)
        for number, mine in enumerate(parts, 1):
            with ExitStack() as stack:
                if number < len(parts):
                    stack.enter_context(self.accelerator.no_sync(self.learner))
                loss = self._loss(mine, totals)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def _loss(self, windows: list[int], totals: tuple[int, int]) -> Tensor:
        # Gradients of several processes are averaged, so each part counts as often as there are processes.
        part = self.corpus.part(windows, totals, self.accelerator.num_processes, self.device)
        # Not accelerate's own autocast: that is a setting of the whole process, and the second recipe in it could not
        # have another.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            loss: Tensor = self.learner(part, self.teacher.says(part.tokens, windows))
        return loss

    def _mine(self, windows: list[int], passes: int, what: str) -> list[list[int]]:
        return divide(windows, passes, self.accelerator.process_index, self.accelerator.num_processes, what)

    def _hear(self) -> None:
        """The losses that waited, over all processes; the first that is no number ends the training."""
        waited, self.waiting = self.waiting, []
        means = self.accelerator.reduce(torch.stack([loss for *_, loss in waited]), "mean")
        for (step, windows, rate, _), loss, finite in zip(
            waited, means.tolist(), means.isfinite().tolist(), strict=True
        ):
            if not finite:
                raise CompressError(
                    f"step {step}: the loss is {loss} on the batch {self.corpus.digest(windows)[:12]} "
                    f"(windows {', '.join(map(str, windows))}); lower learning_rate or raise warmup_steps"
                )
            self.steps.append(Step(step, loss, learning_rate=rate))
            self._tell(self.steps[-1])

    @torch.no_grad()
    def _measure(self) -> None:
        """The loss on windows that are never trained on; the weights that have the least of it are remembered."""
        self.learner.eval()
        totals, passes = self.corpus.totals(self.held_out), -(-len(self.held_out) // self.recipe.batch)
        (mine,) = self._mine(self.held_out, 1, "evaluate.windows")
        losses = [self._loss(mine[n::passes], totals) for n in range(passes)]
        self.learner.train()
        mean = self.accelerator.reduce(torch.stack(losses).sum(), "mean").item()
        self.steps[-1] = replace(self.steps[-1], held_out_nats=mean)
        self._tell(self.steps[-1])
        if self._best() == self.steps[-1]:
            self.best = state.weights(self.learner)

    def _best(self) -> Step:
        return min((s for s in self.steps if s.held_out_nats is not None), key=lambda s: s.held_out_nats or 0.0)

    def _parted(self) -> tuple[list[int], list[int]]:
        """The windows to train on, and those held out."""
        count, held_out = len(self.corpus.tokens), self.recipe.evaluate.windows if self.recipe.evaluate else 0
        if held_out >= count:
            raise CompressError(f"evaluate.windows: {held_out} of {count} leave none to train on; lower it")
        if not held_out:
            return list(range(count)), []
        mixed = torch.randperm(count, generator=torch.Generator().manual_seed(self.recipe.seed)).tolist()
        return sorted(mixed[held_out:]), sorted(mixed[:held_out])

    def _tell(self, step: Step) -> None:
        if self.accelerator.is_main_process:
            self.watch(step)

    def _save(self) -> None:
        assert self.kept is not None
        saved = state.gather(self.learner, self.optimizer.optimizer, self.best)
        saved.about |= {"steps": [asdict(step) for step in self.steps], "schedule": self.schedule.state_dict()}
        if self.accelerator.is_main_process:
            state.write(self.kept, saved)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        saved = None if self.kept is None else state.read(self.kept)
        if saved is not None:
            state.restore_(saved, self.learner, self.optimizer.optimizer)
            self.schedule.load_state_dict(saved.about["schedule"])
            self.steps = [Step(**step) for step in saved.about["steps"]]
            self.best = saved.part(state.BEST) or None


def _groups(learner: nn.Module, weight_decay: float) -> Iterator[dict[str, object]]:
    """Of what is trained, matrices decay; norms do not."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    yield {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay}
    yield {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}
