"""What every pruned model of the tests must be: one that TurboMind loads on one GPU and on two."""

import sys
from functools import wraps

from compress.checkpoint.checkpoint import Checkpoint
from compress.prune import depth, prune
from compress.quantize.turbomind import problems


def servable(folder):
    """Fails where something in the folder breaks the contract in 16 bits, in either layout."""
    checkpoint = Checkpoint(folder)
    biased = checkpoint.config.fields.get("attention_bias")  # which no InternLM2 may be, whoever made it
    for tensor_parallel in (1, 2):
        for layout in ("llama",) if biased else ("llama", "internlm2"):
            found = list(problems(checkpoint.config, layout, None, tensor_parallel))
            assert not found, f"{folder}: tp {tensor_parallel}, layout {layout}: {'; '.join(found)}"


def hold_(patch):
    """From here on whatever writes a pruned model asks for the contract, in every module that has it by its name."""
    for write in (depth.write_without, prune.write):
        for module in [
            one for one in sys.modules.values() if getattr(one, "__dict__", {}).get(write.__name__) is write
        ]:
            patch.setattr(module, write.__name__, _held(write))


def _held(write):
    """Both writers take the model's ModelWriter last."""

    @wraps(write)
    def wrapper(*given):
        result = write(*given)
        servable(given[-1].folder)
        return result

    return wrapper
