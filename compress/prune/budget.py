"""How large, and how slow to decode, a configuration is beside another; read from the configuration alone.

Latency is a model and no clock, so that a stage gives the same result on every machine: a decoded token reads every
weight of the decoder and the head once, and the cache of the tokens before it, and at batch 1 that is what it waits
for. What a layer costs besides (launches, synchronisation), which speaks for fewer layers, is not counted.
"""

from math import prod

from compress.checkpoint.checkpoint import expected_shapes
from compress.checkpoint.config import ModelConfig
from compress.prune.recipe import LatencyTarget, ParametersTarget

CONTEXT = 2048  # tokens in the cache
BYTES = 2  # of a weight or a cached number


def decoder_parameters(config: ModelConfig) -> int:
    """Weights of the decoder layers' linears: all of their parameters but a thousandth, which are norms and biases."""
    shapes = expected_shapes(config.replace(num_hidden_layers=1))  # all layers are alike
    return config.num_layers * sum(
        prod(shape) for name, shape in shapes.items() if ".layers." in name and len(shape) == 2
    )


def decode_bytes(config: ModelConfig) -> int:
    """Bytes that one decoded token reads in 16 bits at batch 1, with `CONTEXT` tokens before it."""
    head = int(config.fields["vocab_size"]) * int(config.fields["hidden_size"])
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * CONTEXT
    return BYTES * (decoder_parameters(config) + head + cache)


def share(config: ModelConfig, source: ModelConfig, target: ParametersTarget | LatencyTarget) -> float:
    """A pruned model's cost as a share of its source's, in what the target bounds."""
    cost = decode_bytes if isinstance(target, LatencyTarget) else decoder_parameters
    return cost(config) / cost(source)


def bound(target: ParametersTarget | LatencyTarget) -> float:
    """The share that must not be exceeded."""
    return target.latency if isinstance(target, LatencyTarget) else target.parameters
