"""Where calibration windows wait: on the host, near the arithmetic, or some here and some there."""

import pytest
import torch

from compress.checkpoint.hidden import HiddenStates

SHAPE = (7, 3, 4)  # the last of four batches holds one window


def filled(num_near):
    states = HiddenStates(torch.empty, SHAPE, "cpu", batch=2, num_near=num_near)
    windows = torch.arange(7 * 3 * 4.0).view(SHAPE)
    for at in states.slices():
        states.put_(at, windows[at].clone())
    return states, windows


@pytest.mark.parametrize("num_near", range(5))
def test_windows_come_back_in_order_wherever_they_wait(num_near):
    states, windows = filled(num_near)
    assert torch.equal(torch.cat([batch for _, batch in states.batches()]), windows)


@pytest.mark.parametrize("num_near", range(5))
def test_a_batch_takes_the_place_of_the_one_before(num_near):
    states, windows = filled(num_near)
    for at, batch in states.batches():
        states.put_(at, batch + 1)
    assert torch.equal(torch.cat([batch for _, batch in states.batches()]), windows + 1)


@pytest.mark.parametrize("num_near", range(5))
def test_a_copy_stays_when_the_original_moves_on(num_near):
    (states, windows), (copied, _) = filled(num_near), filled(1)
    copied.copy_(states)
    for at, batch in states.batches():
        states.put_(at, batch + 1)
    assert torch.equal(torch.cat([batch for _, batch in copied.batches()]), windows)


@pytest.mark.parametrize("num_near", [0, 4])
def test_windows_of_one_place_are_had_at_once(num_near):
    states, windows = filled(num_near)
    assert torch.equal(states.all(), windows)


def test_what_stays_near_takes_no_room_on_the_host():
    asked = []
    HiddenStates(lambda shape: asked.append(shape) or torch.empty(shape), SHAPE, "cpu", batch=2, num_near=2)
    assert asked == [(3, 3, 4)]
