"""Inputs rounded where the engine rounds them, so that what is evaluated is what is served.

Of the formats here `smooth_quant` alone has no unrounded way to be run.
"""

from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.quantize.formats.int8 import rounded_inputs


def round_inputs_(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Makes every linear that is stored in 8-bit whole numbers see its inputs in 8 bits too."""
    for name in checkpoint.names:
        if name.endswith(".scale"):
            model.get_submodule(name.removesuffix(".scale")).register_forward_pre_hook(_rounded)


def _rounded(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return rounded_inputs(args[0]), *args[1:]
