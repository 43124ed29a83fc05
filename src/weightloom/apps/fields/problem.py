"""A family of equations with its solutions: to train on, to choose by, to judge with.

In:   options.
Out:  `FieldProblem`: batches of points, test functions by setting, errors of methods on them.
Knows nothing of the methods' insides.
"""

import time
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from weightloom.apps.fields.methods import SHARED_POINTS, FieldBatch, batch_of
from weightloom.apps.fields.presets import FAMILIES
from weightloom.apps.fields.rivals import grid_of
from weightloom.apps.fields.symmetry import Canonical, canonical
from weightloom.apps.registry import called
from weightloom.errors import ConfigError
from weightloom.tasks.fields import (
    FieldFamily,
    Fields,
    draw_points,
    field_family,
    make_fields,
    relative_error,
)

if TYPE_CHECKING:
    from weightloom.apps.fields.config import FieldsOptions

TEST_SEED, VALIDATION_SEED = 1_000_003, 1_000_033
"""Seeds of functions that are the same in every run; runs train on those of their own seed."""
VALIDATED = 128
"""Validation functions."""
COARSER = (4, 2)
"""Times and positions of which one is kept for validation during training."""
AT_ONCE = 25
"""Functions per pass in evaluations."""
IN_RANGE, BEYOND = "in range", "beyond"
"""Settings: coefficients inside the ranges of training, and outside."""

GRID_CHECKED = 25
"""Functions behind the error of the grid."""


@runtime_checkable
class Predictor(Protocol):
    """A method that predicts values of solutions."""

    def predict(self, inputs: Tensor, at: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values, (fields, points), at positions and times, (fields, points, 2).

        A condition replaces that of the inputs.
        """
        ...


class FieldErrors(NamedTuple):
    """Errors of one method."""

    errors: Tensor
    """Relative error of each function over its grid, (fields,)."""
    time_s: float
    """Seconds per function."""


class FieldProblem:
    """Solutions of a family of equations, and the batches and errors drawn from them.

    Args:
        config: Resolved options.

    Raises:
        ConfigError: If a family of one's own cannot be called, or is no `FieldFamily`.
    """

    def __init__(self, config: "FieldsOptions") -> None:
        self.config = config
        self.curves: dict[str, list[list[float]]] = {}
        self.family = family_of(config.data)
        one = self.family.draw(1, torch.Generator().manual_seed(0))
        self.condition_dim = canonical(self.family, one).condition.shape[1]

    def ready(self) -> None:
        """Compute what training reads, so that its time is not counted as a step's."""
        self._known, self._power, self._grid, self.validation  # noqa: B018

    @cached_property
    def train(self) -> Fields:
        """Solutions to train on, those of the run's seed."""
        return self._made(self.config.train_functions, self.config.seed)

    @cached_property
    def validation(self) -> Fields:
        """Solutions to choose by."""
        return self._made(VALIDATED, VALIDATION_SEED)

    @cached_property
    def settings(self) -> dict[str, Fields]:
        """Solutions to judge with, by setting."""
        count = self.config.test_functions
        seed = VALIDATION_SEED if self.config.validation else TEST_SEED
        inside = self._made(count, seed)
        if self.config.validation:
            return {IN_RANGE: inside}
        return {IN_RANGE: inside, BEYOND: self._made(count, seed + 1, beyond=True)}

    def _made(self, count: int, seed: int, beyond: bool = False) -> Fields:
        chance = torch.Generator().manual_seed(seed)
        return make_fields(self.family, count, chance, beyond=beyond)

    def draw(self, step: int, generator: torch.Generator) -> FieldBatch:
        """Draw points of training solutions, for a step of training."""
        which = torch.randint(len(self.train.inputs), (self.config.functions,), generator=generator)
        drawn = draw_points(self.train, which, self.config.points, generator, roll=False)
        known = self._known.take(which)
        return batch_of(known, drawn.at, drawn.values[..., 0], self._power[which])

    def draw_shared(self, step: int, generator: torch.Generator) -> FieldBatch:
        """Draw the same points of the representatives of all functions, for a step of training.

        Each point costs little, so there are `SHARED_POINTS`, of twice as many functions.

        Args:
            step: Number of the step.
            generator: Source of randomness.
        """
        values, grid = self._grid.flatten(1), (len(self.train.t), len(self.train.x))
        which = torch.randint(len(values), (2 * self.config.functions,), generator=generator)
        chosen = torch.randperm(values.shape[1], generator=generator)[:SHARED_POINTS]
        t, x = (index.long() for index in torch.unravel_index(chosen, grid))
        at = torch.stack([self.train.x[x], self.train.t[t]], -1)[None]
        known = self._known.take(which)
        power = self._power[which] / known.scale.square()
        return FieldBatch(known.condition, at, values[which][:, chosen], power)

    @cached_property
    def _grid(self) -> Tensor:
        return grid_of(self.family, self.train).values.float()

    @cached_property
    def _known(self) -> Canonical:
        return canonical(self.family, self.train.inputs)

    @cached_property
    def _power(self) -> Tensor:
        return self.train.values.square().mean((1, 2))

    def validation_error(self, model: Predictor) -> float:
        """Return the mean relative error of validation functions on a coarser grid."""
        whole, (times, points) = self.validation, COARSER
        fields = whole._replace(
            values=whole.values[:, ::times, ::points], x=whole.x[::points], t=whole.t[::times]
        )
        return self.errors(model, fields).errors.mean().item()

    def errors(
        self, model: Predictor, fields: Fields, condition: Tensor | None = None
    ) -> FieldErrors:
        """Return the relative error of a method on the whole grid of each function.

        Args:
            model: The method.
            fields: Solutions.
            condition: Conditions in place of their own, for controls, (fields, condition_dim).
        """
        start_s = time.monotonic()
        predicted = predict_grid(model, fields.inputs, fields.x, fields.t, condition)
        time_s = (time.monotonic() - start_s) / len(fields.inputs)
        return FieldErrors(relative_error(predicted, fields.values), time_s)

    def controls(self, fields: Fields) -> dict[str, Tensor]:
        """Return conditions that are not those of the fields, each (fields, condition_dim)."""
        own = canonical(self.family, fields.inputs).condition
        mean = self._known.condition.mean(0)
        return {"shuffled": own.roll(1, 0), "mean": mean.expand_as(own)}

    def grid_errors(self, fields: Fields) -> Tensor:
        """Return the relative error of some solutions themselves, by a grid twice as fine."""
        inputs = fields.inputs[:GRID_CHECKED].double()
        exact = self.family.solve(inputs, points=1024, steps=768, times=len(fields.t))
        kept = exact[..., :: 1024 // len(fields.x)]
        return relative_error(fields.values[:GRID_CHECKED].double(), kept).float()


@torch.no_grad()
def predict_grid(
    model: Predictor, inputs: Tensor, x: Tensor, t: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Predict solutions on a grid, (fields, times, points).

    Args:
        model: The method.
        inputs: Inputs of the equations, (fields, 10).
        x: Positions, (points,).
        t: Times, (times,).
        condition: Conditions in place of those of the inputs, (fields, condition_dim).
    """
    at = torch.cartesian_prod(t, x).flip(1)
    conditions = [None] * len(inputs) if condition is None else condition.split(AT_ONCE)
    found = [
        model.predict(part, at.expand(len(part), *at.shape), its)
        for part, its in zip(inputs.split(AT_ONCE), conditions, strict=False)
    ]
    return torch.cat(found).unflatten(1, (len(t), len(x)))


def family_of(data: str) -> FieldFamily:
    """Return a family by name, or one of one's own, called without arguments.

    Args:
        data: A name, or ``module:Class``.

    Raises:
        ConfigError: If it cannot be imported or called, or is no `FieldFamily`.
    """
    if data in FAMILIES:
        return field_family(data)
    own = called(data, "A family", "my_equations:MyFamily")
    if not isinstance(own, FieldFamily):
        raise ConfigError(
            f"`--data {data}` gave a {type(own).__name__}. A family of your own draws inputs and "
            "solves its equations. Inherit from `weightloom.tasks.fields.FieldFamily`."
        )
    return own
