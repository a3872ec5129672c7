"""What a linear loses without some of its inputs, and the weights that make good most of it.

x is what the linear reads in the pruned model, y what it should give: its output in the whole model, and where it
writes to the residual stream also what that stream lacks already. H = E[x xᵀ] and T = E[y xᵀ] say everything: the best
weight on the inputs that stay is a least-squares solution, and the error of taking out one input more, all others
making it good, is that of the optimal brain surgeon (Hassibi and Stork, 1993).
"""

# W (out, in) weight · B (out, in) its plain cut · H (in, in), T (out, in) as above · P (in, in) = H⁻¹

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress.quantize.factor import damp_, factorize

ROUNDS = 64  # inputs go in about so many lots, and are scored again between them
STEADY = 0.01  # damping where inputs are chosen: enough to invert H, little enough to see quiet inputs as they are


def refit(
    B: Float[Tensor, "out in_features"],
    T: Float[Tensor, "out in_features"],
    H: Float[Tensor, "in_features in_features"],
    damping: float,
    place: str,
) -> Float[Tensor, "out in_features"]:
    """The weight W with least E‖W x − y‖² + λ‖W − B‖²; λ is `damping` times H's mean diagonal."""
    missing = T - B @ H
    damped = H.clone()
    damp_(damped, damping)
    return B + factorize(damped, place).solve(missing)


def hardest_to_replace(
    W: Float[Tensor, "out in_features"],
    H: Float[Tensor, "in_features in_features"],
    units: Int64[Tensor, "units size"],
    keep: int,
    place: str,
) -> Int64[Tensor, " keep"]:
    """The units of inputs, in order, that are left after those went whose loss the others make good best."""
    W, P = heard(W, H), inverse(H, place)
    left = torch.ones(len(units), dtype=torch.bool, device=units.device)
    lot = -(-(len(units) - keep) // ROUNDS)
    while int(left.sum()) > keep:
        errors = removal_errors(W, P, units).masked_fill(~left, torch.inf)
        gone = errors.argsort(stable=True)[: min(lot, int(left.sum()) - keep)]
        left[gone] = False
        _take_out_(W, P, units[gone].flatten())
    return left.nonzero()[:, 0]


def heard(
    W: Float[Tensor, "out in_features"], H: Float[Tensor, "in_features in_features"]
) -> Float[Tensor, "out in_features"]:
    """A copy of W that is zero where an input always is: what such an input's weight is says nothing."""
    return W * (H.diagonal() > 0)


def inverse(H: Float[Tensor, "in_features in_features"], place: str) -> Float[Tensor, "in_features in_features"]:
    """H⁻¹, damped as little as choosing needs."""
    damped = H.clone()
    damp_(damped, STEADY)
    return factorize(damped, place).solve(torch.eye(len(H), dtype=H.dtype, device=H.device))


def removal_errors(
    W: Float[Tensor, "out in_features"],
    P: Float[Tensor, "in_features in_features"],
    units: Int64[Tensor, "units size"],
) -> Float[Tensor, " units"]:
    """What the output's mean square error grows by without each unit, all other inputs making it good."""
    if units.shape[1] == 1:
        at = units[:, 0]
        return W[:, at].square().sum(0) / P.diagonal()[at].clamp(min=torch.finfo(P.dtype).tiny)
    return torch.stack([_error(W[:, at], P[at][:, at]) for at in units])


def _error(W: Float[Tensor, "out size"], P: Float[Tensor, "size size"]) -> Float[Tensor, ""]:
    if not P.any():  # taken out before
        return W.new_tensor(torch.inf)
    return (torch.linalg.solve(P, W.t()) * W.t()).sum()


def _take_out_(W: Tensor, P: Tensor, at: Int64[Tensor, " gone"]) -> None:
    """The weight that does without some inputs, and the inverse of what is left of H; both are zero there."""
    share = torch.linalg.solve(P[at][:, at], P[at])
    W -= W[:, at] @ share
    P -= P[:, at] @ share
    P[at] = 0
    P[:, at] = 0
    W[:, at] = 0
