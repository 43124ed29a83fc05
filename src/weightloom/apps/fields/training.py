"""Models of fields by name, and their training with the options of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor

from weightloom.apps.app import Training
from weightloom.apps.fields.config import FieldsOptions
from weightloom.apps.fields.judge import CPU, SCORE
from weightloom.apps.fields.methods import DeepONet, Surrogate, build_net
from weightloom.apps.fields.problem import FieldProblem
from weightloom.apps.fields.rivals import fit_kernel, fit_nearest, grid_of
from weightloom.runs.metrics import read_rows
from weightloom.training import History, TrainOptions, Turn, train

BETAS = (0.9, 0.99)
"""Adam's decay rates, the same for every method."""
RIVALS = {"nearest": fit_nearest, "kernel": fit_kernel}
"""Methods that train nothing, by name."""
AVERAGE = 0.999
"""Decay per step of the running average of the parameters."""


class UntrainedSurrogate:
    """Known solutions, interpolated by their conditions; fitted when first used.

    Args:
        method: Name of the method.
        problem: Training solutions, and validation solutions to choose settings by.
    """

    trained = reads = False

    def __init__(self, method: str, problem: FieldProblem) -> None:
        self.method, self.problem = method, problem

    @cached_property
    def surrogate(self) -> Surrogate:
        """The fitted method, with the symmetries around it."""
        family = self.problem.family
        known, other = (
            grid_of(family, fields) for fields in (self.problem.train, self.problem.validation)
        )
        return Surrogate(family, RIVALS[self.method](known, other, end=family.end))

    def predict(self, inputs: Tensor, at: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values of solutions, as for `Surrogate`."""
        return self.surrogate.predict(inputs, at, condition)

    def eval(self) -> "UntrainedSurrogate":
        """Return the method: it has no modes."""
        return self


def build(method: str, problem: FieldProblem, config: FieldsOptions) -> Any:
    """Build the model of a method, newly initialised.

    Args:
        method: Name of the method.
        problem: The solutions, which methods that train nothing look up.
        config: Resolved options.
    """
    if method in RIVALS:
        return UntrainedSurrogate(method, problem)
    return Surrogate(problem.family, build_net(method, problem.condition_dim, config.width))


def fit(
    model: Surrogate, problem: FieldProblem, config: FieldsOptions, training: Training[Any]
) -> History:
    """Train a model, from its last checkpoint if it has one.

    Args:
        model: The method.
        problem: Training and validation solutions.
        config: Resolved options.
        training: Folder, identity and processes of the training, and the call for an early report.

    Returns:
        Losses and evaluations by step.

    Raises:
        NonFiniteError: If a loss or gradient is not finite.
    """
    assert config.steps
    problem.ready()
    before = [row[CPU] for row in read_rows(training.folder) if CPU in row]
    clock = _Clock(before[-1] if before and training.how()["resume"] else 0.0)
    looked: list[int] = []

    def evaluate(done: int) -> dict[str, Any]:
        with clock.paused() as spent_s:
            if not looked and done < (config.steps or 0):
                looked.append(done)
                training.look(model)
            model.eval()
            found = problem.validation_error(model)
            model.train()
        return {"validation_score": found, "score_name": SCORE, CPU: spent_s}

    settings = TrainOptions(
        steps=config.steps,
        tasks=config.functions,
        outer_lr=config.rate_of(training.method),
        average=AVERAGE,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
    )
    draw = problem.draw_shared if isinstance(model.net, DeepONet) else problem.draw
    turn = Turn("all", betas=BETAS)
    return train(model, draw, None, settings, turns=[turn], evaluate=evaluate, **training.how())


class _Clock:
    """Processor time of a training, without its evaluations.

    Args:
        spent_s: Seconds that it took before it was resumed.
    """

    def __init__(self, spent_s: float) -> None:
        self.start_s = time.process_time() - spent_s

    @contextmanager
    def paused(self) -> Iterator[float]:
        """Stop the clock in a ``with`` block; gives the seconds before it."""
        stopped_s = time.process_time()
        yield round(stopped_s - self.start_s, 3)
        self.start_s += time.process_time() - stopped_s
