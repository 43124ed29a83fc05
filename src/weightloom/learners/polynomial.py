"""Polynomials fitted to each task alone by ridge regression, a baseline without meta-learning."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params


class Powers(nn.Module):
    """Polynomial Σ wₖ xᵏ, for k = 0 to ``degree``, of each input, without products of inputs.

    Args:
        x_dim: Width of an input.
        y_dim: Width of an output.
        degree: Highest power.
    """

    def __init__(self, x_dim: int, y_dim: int, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.weight = nn.Parameter(torch.zeros(y_dim, 1 + x_dim * degree))

    def powers(self, x: Tensor) -> Tensor:
        """Powers 1, x, x², … of inputs, concatenated, (..., 1 + x_dim * degree)."""
        return torch.cat(
            [torch.ones_like(x[..., :1]), *(x**k for k in range(1, self.degree + 1))], dim=-1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Values of the polynomial, (batch, x_dim) to (batch, y_dim)."""
        return nn.functional.linear(self.powers(x), self.weight)


class RidgePolynomial(Learner):
    """Polynomial ridge regression on the support set; the constant term is not penalised.

    Args:
        x_dim: Width of an input.
        y_dim: Width of a target.
        degree: Highest power; 1 is ridge regression on the inputs.
        ridge: Weight of the penalty, for inputs of about unit size.

    Source:
        Hoerl and Kennard, "Ridge regression" (1970).
    """

    base: Powers
    trained = False

    def __init__(self, x_dim: int = 1, y_dim: int = 1, degree: int = 1, ridge: float = 0.1) -> None:
        super().__init__()
        self.base, self.ridge = Powers(x_dim, y_dim, degree), ridge

    def adapt(self, support: Support) -> Params:
        """Solve the normal equations of every task, in double precision."""
        there = support.mask[..., None].double()
        powers = self.base.powers(support.x.double()) * there
        penalty = torch.full(
            (powers.shape[2],), self.ridge, dtype=torch.float64, device=powers.device
        )
        penalty[0] = 1e-9
        normal = powers.mT @ powers + torch.diag(penalty)
        weight = torch.linalg.solve(normal, powers.mT @ (support.y.double() * there)).mT
        return Params({"weight": weight.to(support.y.dtype)})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Evaluate each task's polynomial."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
