"""The calibration windows as pruning reads them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Token windows, which of their tokens count as inputs, and at which the answer counts; None where all do."""

    tokens: Integer[Tensor, "windows length"]
    counted: Bool[Tensor, "windows length"] | None = None
    predicts: Bool[Tensor, "windows length"] | None = None

    def __getitem__(self, at: slice) -> "Text":
        counted, predicts = (None if part is None else part[at] for part in (self.counted, self.predicts))
        return Text(self.tokens[at], counted, predicts)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def counts(self) -> Float[Tensor, "windows length"]:
        """1 where the answer counts, 0 elsewhere."""
        return torch.ones(self.tokens.shape) if self.predicts is None else self.predicts.float()
