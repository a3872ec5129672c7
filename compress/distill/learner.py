"""A student, its head and its loss as one module, because that is what data-parallel wrappers see."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.distill.batches import Pass
from compress.distill.fused import FromHidden, FromTop, Mix, Target, fused_loss
from compress.distill.inherited import inherited_pairs
from compress.distill.layer_losses import Depth, LayerLosses
from compress.distill.losses import AttentionRelation, CrossEntropy, Hidden, LayerLoss
from compress.distill.recipe import DistillRecipe
from compress.distill.stream import Seen, run
from compress.distill.teachers import Beside, Said, Teacher
from compress.distill.token_losses import term
from compress.errors import CompressError


class Learner(nn.Module):
    """A model that answers with its loss against what a teacher says of the same windows."""

    def __init__(self, model: PreTrainedModel, teacher: Teacher, recipe: DistillRecipe) -> None:
        super().__init__()
        self.model = model
        over_vocabulary = [loss for loss in recipe.losses if not isinstance(loss, Hidden | AttentionRelation)]
        between_layers = [loss for loss in recipe.losses if isinstance(loss, Hidden | AttentionRelation)]
        self._labelled = [int(isinstance(loss, CrossEntropy)) for loss in over_vocabulary]
        self._mixed = Mix([(loss.weight, term(loss)) for loss in over_vocabulary], bool(recipe.compile)).function()
        self._twice = recipe.checkpointing
        self.layers: LayerLosses | None = None
        if between_layers:
            guide = _beside(teacher, between_layers[0].kind)
            between_layers = [_numbered(loss, model, guide.model) for loss in between_layers]
            self.layers = LayerLosses(between_layers, _depth(model), _depth(guide.model), bool(recipe.compile))
            guide.residuals, guide.projections = self.layers.theirs

    def forward(self, part: Pass, said: Said) -> Float[Tensor, ""]:
        """The pass's share of the update's mean loss, in nats."""
        streams, projections = self.layers.ours if self.layers is not None else (frozenset(), frozenset())
        seen = run(self.model, part.tokens, streams, projections, twice=self._twice and torch.is_grad_enabled())
        total = self._over_vocabulary(seen, part, said) if self._labelled else 0.0
        if self.layers is not None:
            assert said.seen is not None
            total = total + self.layers(seen, said.seen, part.everywhere())
        assert isinstance(total, Tensor)
        return total

    def _over_vocabulary(self, seen: Seen, part: Pass, said: Said) -> Tensor:
        hs = _chosen(seen.final.flatten(0, 1), part.positions)
        labels = _chosen(part.tokens.roll(-1, 1).flatten(), part.positions) if any(self._labelled) else None
        w = torch.stack([part.w[kind] for kind in self._labelled])
        return fused_loss(hs, self.model.lm_head.weight, _target(said.target, part), labels, w, self._mixed)


def _beside(teacher: Teacher, kind: str) -> Beside:
    if not isinstance(teacher, Beside):
        raise CompressError(f"loss.{kind}: needs the teacher's layers, and a cache has none; leave cache out")
    return teacher


def _numbered(loss: LayerLoss, student: PreTrainedModel, teacher: PreTrainedModel) -> LayerLoss:
    """The loss with the pairs that the student has inherited, where it asks for these."""
    if loss.pairs != "inherited":
        return loss
    return loss.model_copy(update={"pairs": inherited_pairs(student, teacher)})


def _depth(model: PreTrainedModel) -> Depth:
    return Depth(len(model.model.layers), int(model.config.hidden_size))


def _target(target: Target | None, part: Pass) -> Target | None:
    match target:
        case FromHidden(ht, Wt):
            return FromHidden(_chosen(ht, part.positions), Wt)
        case FromTop(lt, ids):
            return FromTop(_chosen(lt, part.positions), _chosen(ids, part.positions))
    return None


def _chosen(rows: Tensor, positions: Tensor | None) -> Tensor:
    return rows if positions is None else rows.index_select(0, positions)
