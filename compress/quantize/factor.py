"""One factorization of the Gram matrix, which feedback and error-compensating rounding both read."""

# H (in, in) Gram · U upper factor of its inverse · J reversal of order

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress.errors import CompressError
from compress.quantize.precision import float32_products

DIRECT = 1024  # columns up to which a triangular matrix is inverted at once


@dataclass(frozen=True)
class Factor:
    """U with UᵀU = H⁻¹, columns of H in `order`: those of the greatest diagonal first."""

    order: Int64[Tensor, " in_features"]
    U: Float[Tensor, "in_features in_features"]

    def solve(self, B: Float[Tensor, "rows in_features"]) -> Float[Tensor, "rows in_features"]:
        """B H⁻¹."""
        return (B[:, self.order] @ self.U.t() @ self.U)[:, self.order.argsort()]


def damp_(H: Float[Tensor, "in_features in_features"], damping: float) -> None:
    """Adds `damping` times its mean to H's diagonal; channels that were never active get a diagonal of 1 before."""
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()


def factorize(H: Float[Tensor, "in_features in_features"], place: str) -> Factor:
    """The factor of a damped H; refuses one that is not positive definite.

    JHJ = LLᵀ gives H = (JLJ)(JLJ)ᵀ, whose first factor is upper: U is its inverse, in products as exact as
    the caller's.
    """
    order = H.diagonal().argsort(descending=True, stable=True)
    backwards = order.flip(0)
    with float32_products("highest"):
        lower, failed = torch.linalg.cholesky_ex(H[backwards][:, backwards])
    if failed.item() or not torch.isfinite(lower).all():
        raise CompressError(f"{place}: Gram matrix is singular; raise damping or add windows")
    U = torch.zeros_like(lower)
    _invert_into_(U, lower.flip(0, 1))
    return Factor(order, U)


def _invert_into_(inverse: Tensor, upper: Tensor) -> None:
    """Fills in an upper triangular matrix's inverse: those of its two halves, and what lies between them by products.

    A matrix unit does these many times as fast as it solves for the columns of the identity.
    """
    if len(upper) <= DIRECT:
        identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
        inverse.copy_(torch.linalg.solve_triangular(upper, identity, upper=True))
        return
    first, second = slice(0, len(upper) // 2), slice(len(upper) // 2, None)
    for half in (first, second):
        _invert_into_(inverse[half, half], upper[half, half])
    inverse[first, second] = (inverse[first, first] @ (upper[first, second] @ inverse[second, second])).neg_()
