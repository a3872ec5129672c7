"""Columns changed one after another, in blocks, while what each change does to the later ones reaches them in products.

The blocks of a stripe need that before their own turn, so they get it from every block; the columns behind the stripe
get all of it at once, which passes over them an eighth as often. It is GPTQ's lazy batch (arXiv 2210.17323, 3.3) twice.
"""

# state (in, out) by column · coupling (in, in), of which [later, at] says what a change of the columns at does to those

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 128  # columns that are changed by one kernel
STRIPE = 8 * BLOCK  # columns whose changes reach those behind them in one product


def blocks(size: int, step: int) -> list[slice]:
    """`size` columns in runs of `step`, the last as long as is left."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def change_in_turn_(
    state: Float[Tensor, "in_features out"],
    coupling: Float[Tensor, "in_features in_features"],
    change: Callable[[slice], Float[Tensor, "block out"]],
    step: int = BLOCK,
) -> None:
    """`change` works on a block of `step` columns; what it returns is added to the later ones, through `coupling`."""
    for stripe in blocks(len(state), max(1, STRIPE // step) * step):
        changes = torch.empty_like(state[stripe])
        for within in blocks(len(changes), step):
            at = slice(stripe.start + within.start, stripe.start + within.stop)
            changes[within] = change(at)
            later = slice(at.stop, stripe.stop)
            state[later].addmm_(coupling[later, at], changes[within])
        state[stripe.stop :].addmm_(coupling[stripe.stop :, stripe], changes)
