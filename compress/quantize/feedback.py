"""Weights that make good what the rounded layers before them have done.

Calibrating a layer on the rounded model's inputs finds the best rounding of W for those inputs, but still aims at W x,
where the float model would have had W x̃. Aiming at W x̃, and for linears that write to the residual stream also at the
difference h̃ − h that has built up in it, is a least-squares problem whose answer is in closed form: see `aimed`.
(GPTAQ, arXiv 2504.02692, aims at W x̃; the term for the residual stream is ours.)

Only a share of the correction pays: all of it fits the calibration text's noise.
"""

# W (out, in) weight · H (damped), D, R as in statistics.py · β share

from jaxtyping import Float
from torch import Tensor

from compress.quantize.factor import Factor


def aimed(
    W: Float[Tensor, "out in_features"],
    D: Float[Tensor, "in_features in_features"],
    R: Float[Tensor, "out in_features"] | None,
    factor: Factor,
    share: float,
) -> Float[Tensor, "out in_features"]:
    """W + β (W D + R) H⁻¹: of all weights, about those with least E‖W′x − (W x̃ + h̃ − h)‖² when β is 1."""
    wanted = W @ D
    if R is not None:
        wanted += R
    return W + share * factor.solve(wanted)
