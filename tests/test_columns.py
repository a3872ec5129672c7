"""Columns that wait for a stripe's changes have them all when their turn comes."""

import pytest
import torch

from compress.quantize.columns import BLOCK, STRIPE, change_in_turn_


@pytest.mark.parametrize("size", [96, STRIPE, STRIPE + 32, 2 * STRIPE + 3 * BLOCK + 1])
@pytest.mark.parametrize("step", [32, 96, BLOCK])
def test_every_block_finds_what_all_before_it_have_changed(size, step):
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    coupling = torch.randn(size, size, generator=generator, dtype=torch.float64) / size
    expected, turns = state.clone(), []

    def change(at):
        turns.append((at.start, at.stop))
        return state[at].cos()

    change_in_turn_(state, coupling, change, step)
    for start in range(0, size, step):
        at = slice(start, min(start + step, size))
        expected[at.stop :] += coupling[at.stop :, at] @ expected[at].cos()
    assert torch.allclose(state, expected, rtol=1e-12, atol=1e-12)
    assert turns == [(start, min(start + step, size)) for start in range(0, size, step)]
