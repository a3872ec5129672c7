"""Which layer of its teacher each layer of a pruned student came from, and so what each should hand on."""

# n the student's layer · o(n) the teacher's that it was copied from: the next layer expects what o(n+1) − 1 gave

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.errors import CompressError

# By the first of these that pruning has left its shape a layer is known again: one of two matrices where either the
# feed-forward or the attention is narrower, a norm where both are.
PROBES = "mlp.down_proj", "self_attn.o_proj", "post_attention_layernorm"


@torch.no_grad()
def inherited_pairs(student: PreTrainedModel, teacher: PreTrainedModel) -> list[list[int]]:
    """Pairs from the first gap on, those before it are the teacher's own; all where no layer was left out."""
    ours, theirs = (model.model.layers for model in (student, teacher))
    if len(ours) == len(theirs):
        return [[n, n] for n in range(len(ours))]
    origins = _origins(student, teacher)
    expected = [*(o - 1 for o in origins[1:]), len(theirs) - 1]
    first = next(n for n, layer in enumerate(expected) if layer != n)
    return [[n, layer] for n, layer in enumerate(expected)][first:]


def _origins(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int]:
    """The nearest of the teacher's layers to each of the student's; refused where they are not in order."""
    ours, theirs = next((both for probe in PROBES if (both := _weights(probe, student, teacher))), ([], []))
    if not ours:
        raise CompressError("loss.hidden.pairs: inherited, but the student's stream is narrower; use even")
    found = [int(torch.stack([(W - other).norm() for other in theirs]).argmin()) for W in ours]
    if found != sorted(set(found)):
        raise CompressError(
            f"loss.hidden.pairs: inherited, but the student's layers resemble the teacher's {found}; use even"
        )
    return found


def _weights(
    probe: str, student: PreTrainedModel, teacher: PreTrainedModel
) -> tuple[list[Tensor], list[Tensor]] | None:
    """A module's weight in every layer of both, where it has one shape in them."""
    ours, theirs = ([layer.get_submodule(probe).weight for layer in m.model.layers] for m in (student, teacher))
    return (ours, theirs) if ours[0].shape == theirs[0].shape else None
