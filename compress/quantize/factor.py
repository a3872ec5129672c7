"""One factorization of the Gram matrix, which feedback and error-compensating rounding both read."""

# H (in, in) Gram · U upper factor of its inverse · J reversal of order

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress.errors import CompressError
from compress.quantize.precision import float32_products


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

    JHJ = LLᵀ gives H = (JLJ)(JLJ)ᵀ, whose first factor is upper: U is its inverse.
    """
    order = H.diagonal().argsort(descending=True, stable=True)
    backwards = order.flip(0)
    with float32_products("highest"):
        lower, failed = torch.linalg.cholesky_ex(H[backwards][:, backwards])
        if failed.item() or not torch.isfinite(lower).all():
            raise CompressError(f"{place}: Gram matrix is singular; raise damping or add windows")
        identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
        return Factor(order, torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True))
