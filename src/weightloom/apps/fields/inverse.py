"""Inverse problems: coefficients and initial state of an equation, from points of its solution.

In:   noisy values at scattered positions and times; a differentiable way to predict them.
Out:  `Inverted`: the inputs of the equation that fits best.
Knows nothing of networks: a trained surrogate and the solver itself are predicted through alike.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.apps.fields.rivals import interpolated
from weightloom.errors import ConfigError, ShapeError
from weightloom.tasks.fields import COEFFICIENTS, FieldFamily

Predict = Callable[[Tensor, Tensor], Tensor]
"""Inputs, (fields, 10), and positions and times, (fields, points, 2), to values, (fields, points).
"""


class Inverted(NamedTuple):
    """Equations found from points of their solutions."""

    inputs: Tensor
    """Inputs of the best start of each problem, (problems, 10)."""
    misfit: Tensor
    """Mean square of (prediction - value) / noise, (problems,); near 1 if all is explained."""


def invert(
    predict: Predict,
    family: FieldFamily,
    at: Tensor,
    values: Tensor,
    *,
    noise: Tensor | float,
    generator: torch.Generator,
    starts: int = 6,
    steps: int = 400,
    learning_rate: float = 0.1,
) -> Inverted:
    """Find the most probable inputs, by gradients through a prediction.

    Minimises half the sum of squares of (prediction - value) / noise, and of the Fourier
    coefficients in units of their standard deviation in the family; the two coefficients of the
    equation stay in their ranges. Adam takes the steps, at a rate that falls to 0 as a cosine. All
    starts of all problems are one batch; the best start of each problem is returned.

    Args:
        predict: Differentiable prediction: ``train(...).model.predict``, or `through_solver`.
        family: Form of the equations, their ranges and their initial states.
        at: Positions and times, (problems, points, 2).
        values: Values there, (problems, points).
        noise: Standard deviation of the values' noise, one for all or (problems,).
        generator: Source of the random starts, which are drawn as inputs are.
        starts: Random starts per problem.
        steps: Gradient steps.
        learning_rate: Adam's first rate, in units of the inputs' standard deviations.

    Raises:
        ShapeError: If ``at`` and ``values`` disagree.
        ConfigError: If ``noise`` is not above 0, or ``starts`` or ``steps`` below 1.
    """
    problems = len(values)
    size = torch.as_tensor(noise, dtype=values.dtype).expand(problems)
    _check(at, values, size, starts, steps)
    at, values, size = (its.repeat_interleave(starts, 0) for its in (at, values, size))
    free = torch.randn(problems * starts, family.condition_dim, generator=generator)
    free.requires_grad_()
    adam = torch.optim.Adam([free], learning_rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def losses() -> tuple[Tensor, Tensor]:
        misfit = ((predict(_inputs(family, free), at) - values) / size[:, None]).square()
        prior = free[:, COEFFICIENTS:].square().sum(1)
        return (misfit.sum(1) + prior) / 2, misfit.mean(1)

    for _ in range(steps):
        (free.grad,) = torch.autograd.grad(losses()[0].sum(), free)
        adam.step()
        falling.step()
    with torch.no_grad():
        loss, misfit = (its.view(problems, starts) for its in losses())
        best = loss.argmin(1, keepdim=True)
        inputs = _inputs(family, free).view(problems, starts, -1)
    found = inputs.gather(1, best[..., None].expand(-1, -1, inputs.shape[2]))
    return Inverted(found[:, 0], misfit.gather(1, best)[:, 0])


def through_solver(family: FieldFamily, *, points: int = 128, steps: int = 96) -> Predict:
    """Return a prediction by the solver, on a grid, `interpolated` at the positions.

    Args:
        family: Form of the equations.
        points: Points of the solver's grid.
        steps: Time steps; all are kept, for the interpolation.
    """

    def predict(inputs: Tensor, at: Tensor) -> Tensor:
        solved = family.solve(inputs, points=points, steps=steps, times=steps + 1)
        return interpolated(solved, at, family.end).to(at)

    return predict


def _inputs(family: FieldFamily, free: Tensor) -> Tensor:
    """Map free numbers to inputs; a normal number gives a coefficient inside its range."""
    ends = math.sqrt(3) * torch.tanh(free[:, :COEFFICIENTS])
    return family.from_normalised(torch.cat([ends, free[:, COEFFICIENTS:]], 1))


def _check(at: Tensor, values: Tensor, noise: Tensor, starts: int, steps: int) -> None:
    if values.ndim != 2 or at.shape != (*values.shape, 2):
        raise ShapeError(
            f"`at` has the shape {tuple(at.shape)}, `values` {tuple(values.shape)}. Each value "
            "belongs to a position and a time. Pass (problems, points, 2) and (problems, points)."
        )
    if not bool((noise > 0).all()):
        raise ConfigError(
            f"`noise={noise.min():g}`. The misfit is measured in units of the noise. Pass its "
            "standard deviation, above 0, as in `noise=0.02 * values.std()`."
        )
    if min(starts, steps) < 1:
        raise ConfigError(
            f"`starts={starts}` and `steps={steps}`. Inputs are found by steps from random starts. "
            "Pass numbers from 1."
        )
