"""What a linear loses without some inputs, by closed form and by hand."""

import pytest
import torch
from calibration import correlated_inputs

from compress.prune import least_squares
from compress.prune.least_squares import hardest_to_replace, refit, removal_errors

LITTLE = 1e-6


def problem(channels=24, seed=0):
    x = correlated_inputs(400, channels, seed).double()
    W = torch.randn(10, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, W, x.t() @ x / len(x)


def error_on(x, W, y):
    return (x @ W.t() - y).square().sum(1).mean()


def test_refit_is_the_least_squares_solution():
    x, W, H = problem()
    y = x @ W.t() + torch.randn(400, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = torch.arange(0, 24, 2)
    T = y.t() @ x[:, kept] / len(x)
    ours = refit(W[:, kept].float(), T.float(), H[kept][:, kept].float(), LITTLE, "here")
    best = torch.linalg.lstsq(x[:, kept], y).solution.t()
    assert torch.allclose(ours.double(), best, atol=1e-3)
    assert error_on(x[:, kept], ours.double(), y) < 0.9 * error_on(x[:, kept], W[:, kept], y)


def test_more_damping_stays_nearer_to_the_plain_cut():
    x, W, H = problem()
    T = (x @ W.t()).t() @ x[:, :12] / len(x)
    B, H = W[:, :12].float(), H[:12, :12].float()
    away = [float((refit(B, T.float(), H, damping, "here") - B).norm()) for damping in (0.01, 1.0, 100.0)]
    assert away[0] > away[1] > away[2]
    assert torch.equal(refit(B, B @ H, H, 0.1, "here"), B)


@pytest.mark.parametrize("size", [1, 4])
def test_a_removal_error_is_that_of_the_best_weight_without_the_unit(size):
    x, W, H = problem()
    units = torch.arange(24).view(-1, size)
    ours = removal_errors(W, torch.linalg.inv(H), units)
    for unit, error in zip(units, ours, strict=True):
        kept = torch.tensor([n for n in range(24) if n not in unit.tolist()])
        best = torch.linalg.lstsq(x[:, kept], x @ W.t()).solution.t()
        assert error_on(x[:, kept], best, x @ W.t()) == pytest.approx(float(error), rel=1e-6)


@pytest.mark.parametrize("size", [1, 4])
def test_units_go_one_by_one_each_time_the_one_that_is_made_good_best(size, monkeypatch):
    monkeypatch.setattr(least_squares, "STEADY", LITTLE)
    x, W, H = problem()
    units, left = torch.arange(24).view(-1, size), list(range(24 // size))
    while len(left) > 3:
        errors = []
        for gone in left:
            kept = units[[n for n in left if n != gone]].flatten()
            errors.append(
                float(error_on(x[:, kept], torch.linalg.lstsq(x[:, kept], x @ W.t()).solution.t(), x @ W.t()))
            )
        left.pop(errors.index(min(errors)))
    ours = hardest_to_replace(W.float(), H.float(), units, 3, "here")
    assert ours.tolist() == left


def test_many_units_go_in_lots_and_no_more_than_asked():
    _, W, H = problem(256)
    kept = hardest_to_replace(W.float(), H.float(), torch.arange(256)[:, None], 100, "here")
    assert len(kept) == len(set(kept.tolist())) == 100
    assert kept.tolist() == sorted(kept.tolist())
