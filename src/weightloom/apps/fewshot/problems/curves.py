"""Regression of unseen curves: sinusoids, growth curves, a table of your own."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Numbers, Targets
from weightloom.apps.fewshot.problems.base import own_base
from weightloom.apps.fewshot.problems.problem import Problem
from weightloom.learners.interpolation import GaussianCurves
from weightloom.learners.kernel import GridFunction, tuned_kernel
from weightloom.learners.learner import Learner
from weightloom.learners.polynomial import GaussianPolynomial
from weightloom.networks import mlp
from weightloom.tasks import SinusoidTasks, TaskSource
from weightloom.tasks.growth import growth_split, load_growth_curves, of_families
from weightloom.tasks.points import PointPool, PointTasks, Stretch
from weightloom.tasks.table import Scale, TableTasks, load_table
from weightloom.tasks.tasks import told

GAUSSIAN_CURVES = 3000
"""Number of training sinusoids that the Gaussian is fitted to."""
GAUSSIAN_TASKS = 1000
"""Number of drawn training tasks of other data that the Gaussian prior is estimated from."""
TUNING_TASKS = 200
"""Drawn validation tasks per number of shots that the temperature of kernel regression is chosen
by."""
MOST_CUBED = 10
"""Maximum number of inputs whose squares and cubes the Gaussian reads; of more it reads a line."""


class CurveProblem(Problem):
    """Problem of predicting numbers in unseen tasks from a few points of each.

    Args:
        config: Resolved options.

    Raises:
        DataError: If the data are missing or damaged.
        ConfigError: If shots and queries ask for more points than the tasks have.
    """

    kind = "regression"
    at_once = 500

    def __init__(self, config: FewShotOptions) -> None:
        self.config = config
        self.x_dim = self.y_dim = 1
        self.table = load_table(config.data) if config.kind == "table" else None
        self.pools, self.notices = _pools(config, self.table)
        self.centred = config.kind == "growth-curves"
        if self.pools:
            self.x_dim, self.y_dim = self.pools["train"].x.shape[1], self.pools["train"].y.shape[1]
        if self.table and not self.pools["train"].shared_grid():
            self.without = ("kernel",)
        for shots in config.shots or ():
            self.test_source(shots)
        self.train_source()

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return tasks of meta-training, with 1 to the maximum number of shots.

        Half of the tasks of sinusoids have the maximum.
        """
        assert self.config.queries and self.config.shots
        most, queries = max(self.config.shots), self.config.queries
        if not self.pools:
            return SinusoidTasks(most, queries, ragged=0.5)
        augment = Stretch() if self.centred else None
        return PointTasks(self.pools["train"], most, queries, 1, self.centred, augment)

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return new sinusoids, or held-out tasks of other data."""
        return self._source("test", shots)

    def validation_source(self, shots: int) -> TaskSource:
        """Return new sinusoids, or the validation tasks of other data."""
        return self._source("validation", shots)

    def _source(self, part: str, shots: int) -> TaskSource:
        assert self.config.queries
        uneven = self.config.uneven_shots
        if not self.pools:
            return SinusoidTasks(shots, self.config.queries, ragged=1.0 if uneven else 0.0)
        fewest = 1 if uneven else None
        return PointTasks(
            self.pools[part], shots, self.config.queries, fewest, centred=self.centred
        )

    def build(self, outputs: int) -> nn.Module:
        """Build the base network, by default an MLP with two hidden layers of width 40."""
        if self.config.base:
            return own_base(self.config, outputs, (self.x_dim,))
        return mlp([self.x_dim, 40, 40, outputs])

    def gaussian(self) -> Learner:
        """Fit a Gaussian to training functions.

        On sinusoids it is a Gaussian over whole curves; trained methods see only points of them.
        Other tasks are polynomials of degree 3 under a Gaussian prior, which is estimated from
        points of training tasks. On validation families of growth curves, degrees 2 and 5 and tasks
        that are changed by `Stretch` give a larger error.

        Sinusoids lie in two dimensions around their mean, sin and cos, and are observed without
        noise. On validation tasks one component is too few, a third has no effect, and no ridge
        below 1e-6 is better.
        """
        if self.config.kind != "sinusoid":
            return self._gaussian_polynomial()
        drawn = self.train_source().sample(GAUSSIAN_CURVES, torch.Generator().manual_seed(0))
        amplitude, phase = drawn.hidden.double().split(1, dim=1)
        grid = torch.linspace(-5, 5, 501, dtype=torch.float64)
        curves = SinusoidTasks.curve(grid, amplitude, phase)
        return GaussianCurves(curves, span=(-5.0, 5.0), components=2, ridge=1e-6)

    def kernel(self) -> Learner:
        """Build kernel regression over the training tasks of a table, which share their inputs."""
        grid = self.pools["train"].shared_grid()
        assert grid
        return self._kernel_over(*grid)

    def _kernel_over(self, positions: Tensor, values: Tensor) -> Learner:
        """Build kernel regression over known functions, tuned on validation tasks."""
        drawn = [
            self.validation_source(shots).sample(TUNING_TASKS, torch.Generator().manual_seed(0))
            for shots in self.config.shots or ()
        ]
        return tuned_kernel(GridFunction(positions, values.shape[2]), values, drawn)

    def _gaussian_polynomial(self) -> Learner:
        source = self.train_source()
        if isinstance(source, PointTasks):
            source = replace(source, augment=None)
        drawn = source.sample(GAUSSIAN_TASKS, torch.Generator().manual_seed(0))
        return GaussianPolynomial(drawn, 3 if self.x_dim <= MOST_CUBED else 1)

    def inputs(self) -> Inputs:
        """Return the preprocessing of a point's inputs, with the scale of training."""
        if self.table is not None:
            scale = self._scale(self.table)
            return Numbers(
                self.table.features, tuple(scale.x_mean.tolist()), tuple(scale.x_std.tolist())
            )
        if self.centred:
            return Numbers(
                ("x",),
                about="From -1 at the first to 1 at the last point of the curves of a family.",
            )
        return Numbers(("x",), about="From -5 to 5.")

    def targets(self) -> Targets:
        """Return the predicted number and its scale in the unit of the data."""
        if self.table is None:
            return Targets(("y",), centred=self.centred)
        scale = self._scale(self.table)
        return Targets(
            (self.table.target,), tuple(scale.y_mean.tolist()), tuple(scale.y_std.tolist())
        )

    def _scale(self, table: TableTasks) -> Scale:
        """Return means and standard deviations of the tasks of meta-training."""
        number = {name: place for place, name in enumerate(table.pool.names)}
        return Scale.of(
            table.pool.take(torch.tensor([number[name] for name in self.pools["train"].names]))
        )

    def setting(self, shots: int, ways: int) -> str:
        """Return the setting in words, as in "5-shot"."""
        return f"{self.up_to(shots)}-shot"


def _pools(
    config: FewShotOptions, table: TableTasks | None
) -> tuple[dict[str, PointPool], tuple[str, ...]]:
    """Return the pools for train, validation and test, and notices about skipped rows.

    No pools for sinusoids, which are made on the fly.
    """
    notices: tuple[str, ...] = ()
    if config.kind == "sinusoid":
        return {}, notices
    if table is not None:
        train, validation, test = table.split(seed=config.split)
        notices = tuple(told(table.skipped))
    else:
        pool = load_growth_curves()
        train, validation, test = (
            of_families(pool, families) for families in growth_split(config.split)
        )
    return {
        "train": train,
        "validation": validation,
        "test": validation if config.held_out == "validation" else test,
    }, notices
