"""A student, its head and its loss as one module, because that is what data-parallel wrappers see."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.distill.batches import Pass
from compress.distill.fused import FromHidden, FromTop, Mix, Target, fused_loss
from compress.distill.losses import AttentionRelation, CrossEntropy, Hidden, LayerLoss, VocabularyLoss
from compress.distill.stream import run
from compress.distill.teachers import Said
from compress.distill.token_losses import term


class Learner(nn.Module):
    """A model that answers with its loss against what a teacher says of the same windows."""

    def __init__(
        self, model: PreTrainedModel, losses: Sequence[VocabularyLoss | LayerLoss], compiled: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        over_vocabulary = [loss for loss in losses if not isinstance(loss, Hidden | AttentionRelation)]
        self._labelled = [int(isinstance(loss, CrossEntropy)) for loss in over_vocabulary]
        self._mixed = Mix([(loss.weight, term(loss)) for loss in over_vocabulary], compiled).function()

    def forward(self, part: Pass, said: Said) -> Float[Tensor, ""]:
        """The pass's share of the update's mean loss, in nats."""
        seen = run(self.model, part.tokens)
        hs = _chosen(seen.final.flatten(0, 1), part.positions)
        labels = _chosen(part.tokens.roll(-1, 1).flatten(), part.positions) if any(self._labelled) else None
        w = torch.stack([part.w[kind] for kind in self._labelled])
        return fused_loss(hs, self.model.lm_head.weight, _target(said.target, part), labels, w, self._mixed)


def _target(target: Target | None, part: Pass) -> Target | None:
    match target:
        case FromHidden(ht, Wt):
            return FromHidden(_chosen(ht, part.positions), Wt)
        case FromTop(lt, ids):
            return FromTop(_chosen(lt, part.positions), _chosen(ids, part.positions))
    return None


def _chosen(rows: Tensor, positions: Tensor | None) -> Tensor:
    return rows if positions is None else rows.index_select(0, positions)
