"""Who the student learns from: the base running beside it, or what the base once said, kept on disk."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import PreTrainedModel

from compress.distill.fused import FromHidden, Target
from compress.distill.stream import Seen, run


@dataclass(frozen=True)
class Said:
    """What a teacher says of some windows: of every token, and of its layers where those are matched."""

    target: Target | None
    seen: Seen | None = None


@runtime_checkable
class Teacher(Protocol):
    """Answers for windows of token ids, whose numbers in the corpus are given too."""

    @property
    def vocab_size(self) -> int: ...

    def says(self, tokens: Integer[Tensor, "windows length"], windows: list[int]) -> Said:
        """For all positions of the windows, flattened."""
        ...


class Beside:
    """A model that runs beside its student."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.vocab_size = int(model.config.vocab_size)
        self.residuals: frozenset[int] = frozenset()
        self.projections: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: PreTrainedModel, device: torch.device) -> "Beside":
        """The model where its student is."""
        return cls(model.eval().to(device))

    @torch.no_grad()
    def says(self, tokens: Integer[Tensor, "windows length"], windows: list[int]) -> Said:
        """The model's answer to the tokens; their numbers do not matter."""
        seen = run(self.model, tokens, self.residuals, self.projections)
        return Said(FromHidden(seen.final.flatten(0, 1), self.model.lm_head.weight.detach()), seen)
