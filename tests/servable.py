"""What every pruned model of the tests must be: one that TurboMind loads on one GPU and on two."""

from compress.checkpoint.checkpoint import Checkpoint
from compress.quantize.turbomind import problems


def servable(folder):
    """The folder, if nothing in it breaks the contract in 16 bits, in either layout."""
    checkpoint = Checkpoint(folder)
    biased = checkpoint.config.fields.get("attention_bias")  # which no InternLM2 may be, whoever made it
    for tensor_parallel in (1, 2):
        for layout in ("llama",) if biased else ("llama", "internlm2"):
            assert list(problems(checkpoint.config, layout, None, tensor_parallel)) == []
    return folder
