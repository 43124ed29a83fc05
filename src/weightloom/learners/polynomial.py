"""Polynomials fitted to each task, by ridge regression or under a Gaussian prior: baselines."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.learners.functions import GaussianFunction
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params
from weightloom.tasks import Tasks


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
        return powers_of(x, self.degree)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the polynomial, (batch, x_dim) to (batch, y_dim)."""
        return nn.functional.linear(self.powers(x), self.weight)


class ScaledPowers(nn.Module):
    """Powers of an input, combined to features by a fixed matrix.

    Args:
        powers: Source of the powers.
        factor: The matrix, (powers, features).

    Example:
        >>> ScaledPowers(Powers(1, 1, degree=2), torch.eye(3))(torch.tensor([[3.0]])).tolist()
        [[1.0, 3.0, 9.0]]
    """

    factor: Tensor

    def __init__(self, powers: Powers, factor: Tensor) -> None:
        super().__init__()
        self.features, self.degree = factor.shape[1], powers.degree
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """Features, (batch, x_dim) to (batch, features)."""
        return powers_of(x, self.degree) @ self.factor.to(x.dtype)


def powers_of(x: Tensor, degree: int) -> Tensor:
    """Powers 1, x, x², … of inputs, concatenated, (..., 1 + x_dim * degree)."""
    return torch.cat([torch.ones_like(x[..., :1]), *(x**k for k in range(1, degree + 1))], dim=-1)


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


class GaussianPolynomial(Learner):
    """Polynomial with a Gaussian prior on its coefficients, estimated from training tasks.

    Mean and covariance of the coefficients, and the variance of the noise, maximise the likelihood
    of the training tasks, by expectation and maximisation. A new task gets the posterior mean of
    its coefficients. Targets of several numbers have independent priors.

    Args:
        drawn: Training tasks; support and query points are used alike.
        degree: Highest power; 1 is a line.
        steps: Steps of the estimation.

    Source:
        Laird and Ware, "Random-effects models for longitudinal data" (1982).
    """

    base: Powers
    trained = False
    mean: Tensor
    factor: Tensor
    noise: Tensor

    def __init__(self, drawn: Tasks, degree: int = 3, steps: int = 50) -> None:
        super().__init__()
        parts = (drawn.support, drawn.query)
        x, y, mask = (
            torch.cat([values.double(), more.double()], 1)
            for values, more in zip(*parts, strict=True)
        )
        self.base = Powers(x.shape[2], y.shape[2], degree)
        points = _Points.of(self.base, x, y, mask)
        there = mask[..., None]
        count = there.sum()
        square = (points.powers.square().sum((0, 1)) / count).clamp(min=1e-12)
        level = (y * there).sum((0, 1)) / count
        spread = ((y - level).square() * there).sum((0, 1)) / count
        mean = torch.zeros(y.shape[2], len(square), dtype=torch.float64)
        mean[:, 0] = level
        # Every coefficient begins with the scale at which its power explains the whole variance.
        factor = torch.diag_embed((spread[:, None] / square).clamp(min=1e-12).sqrt())
        self.floor = 1e-9 * spread + 1e-12
        self.register_buffer("mean", mean)
        self.register_buffer("factor", factor)
        self.register_buffer("noise", (0.1 * spread).clamp(min=1e-12))
        for _ in range(steps):
            self._improve(points, count)

    def _improve(self, points: "_Points", count: Tensor) -> None:
        """Take one step of expectation and maximisation.

        A task's coefficients are mean + factor z, with z standard normal. The step computes the
        posterior of z for every task, then the prior and the noise that fit these best.
        """
        expected, covariance = self._posterior(points)
        level = expected.mean(0)
        miss = expected - level
        moved = (covariance + miss[..., None] * miss[..., None, :]).mean(0)
        features = points.powers[:, None] @ self.factor
        left = points.y.mT - points.powers[:, None].matmul(self.mean[..., None])[..., 0]
        left = left - (features @ expected[..., None])[..., 0]
        unsure = ((features @ covariance) * features).sum(-1)
        self.noise = ((left.square() + unsure).sum((0, 2)) / count).maximum(self.floor)
        self.mean = self.mean + (self.factor @ level[..., None])[..., 0]
        self.factor = self.factor @ torch.linalg.cholesky(moved)

    def _posterior(self, points: "_Points") -> tuple[Tensor, Tensor]:
        """Posterior mean and covariance of z, (tasks, out, k) and (tasks, out, k, k)."""
        noise = self.noise[:, None, None]
        features = points.powers[:, None] @ self.factor
        unit = torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)
        covariance = torch.linalg.inv(unit + features.mT @ features / noise)
        left = points.y.mT[..., None] - points.powers[:, None] @ self.mean[..., None]
        return (covariance @ (features.mT @ left) / noise)[..., 0], covariance

    def adapt(self, support: Support) -> Params:
        """Posterior mean of the coefficients of every task, in double precision."""
        points = _Points.of(self.base, support.x, support.y, support.mask)
        expected, _ = self._posterior(points)
        weight = self.mean + (self.factor @ expected[..., None])[..., 0]
        return Params({"weight": weight.to(support.y.dtype)})

    def function(self) -> GaussianFunction:
        """Return a function with this prior and noise, for `HyperFunction`.

        Raises:
            ConfigError: If targets have several numbers, whose priors differ in their features.
        """
        if len(self.mean) > 1:
            raise ConfigError(
                f"Targets have {len(self.mean)} numbers, each with a prior of its own. The "
                "features of a `GaussianFunction` suit one prior. Fit a `GaussianPolynomial` to "
                "one of the numbers."
            )
        mean = torch.linalg.solve(self.factor[0], self.mean[0])
        trunk = ScaledPowers(self.base, self.factor[0].float())
        return GaussianFunction(trunk, mean[None], float(self.noise))

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Evaluate each task's polynomial."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


class _Points(NamedTuple):
    """Powers and targets of the points of several tasks, zero where masked."""

    powers: Tensor
    """(tasks, points, k)."""
    y: Tensor
    """(tasks, points, out)."""
    there: Tensor
    """1 for real points, (tasks, points, 1)."""

    @classmethod
    def of(cls, base: Powers, x: Tensor, y: Tensor, mask: Tensor) -> "_Points":
        """Compute them in double precision."""
        there = mask[..., None].double()
        return cls(base.powers(x.double()) * there, y.double() * there, there)
