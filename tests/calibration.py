"""Activations to calibrate on, and their statistics."""

import torch

from compress.quantize.statistics import Accumulator


def correlated_inputs(tokens=512, channels=256, seed=0):
    """Activations like a language model's: correlated, and a few channels much larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator) / channels**0.5
    x = torch.randn(tokens, channels, generator=generator) @ (torch.eye(channels) + mix)
    x[:, ::29] *= 12
    return x


def statistics_of(x, x_float=None, drift=None):
    """The statistics of one batch; the float model's input is the same where it is not given."""
    accumulator = Accumulator()
    accumulator.add(x, x if x_float is None else x_float, drift)
    return accumulator.means()
