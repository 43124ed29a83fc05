"""Problems around a `TaskSource` of the user's own, named as ``module:Class``.

In:   ``module:Class``, called with those of ``shots``, ``queries``, ``ways`` and ``part`` that its
      signature has.
Out:  a classification if labels are integers, a regression if targets are floating point.
Knows nothing of how tasks are made.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Arrays, Inputs, Numbers, Targets
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.problems.curves import CurveProblem
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.apps.fewshot.problems.problem import Problem, observed
from weightloom.apps.registry import OWN_ERRORS, imported
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.learners.kernel import shared_grid
from weightloom.learners.learner import Learner
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share
from weightloom.tasks.data import ClassPool

TAKEN = ("shots", "queries", "ways", "part")
"""Arguments passed to the user's class if its signature has them."""
PARTS = ("train", "validation", "test")
KNOWN_TASKS, KNOWN_SEED = 2000, 1
"""Number and seed of the training tasks that kernel regression takes the known functions from."""
SMALL = 16
"""Minimum side, in pixels, of images for a residual network; smaller ones get a small network."""
MOST_CLASSES = 100_000
"""Maximum number of training classes."""
LOOKED_AT = 64
"""Training tasks drawn to learn the number of training classes."""


class OwnTasks(TaskSource):
    """Source that checks the tasks of a user's source.

    Args:
        source: The user's source.
        name: Name of the source in messages.
        salt: Added to the seed, to draw other tasks from the same generator; 0 for no change.
        pool: Keep `Tasks.classes`, the number of each class in the pool of training classes.
            Otherwise classes are numbered as the labels of their task.
    """

    def __init__(self, source: TaskSource, name: str, salt: int = 0, pool: bool = False) -> None:
        self.source, self.name, self.salt, self.pool = source, name, salt, pool

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw tasks and check them.

        Args:
            tasks: Number of tasks.
            generator: Source of random numbers.
            share: Tasks to return of those drawn, e.g. those of one of several processes.

        Raises:
            DataError: If the source raises an error, or returns anything but `Tasks` with fitting
                shapes, finite numbers and valid labels.
        """
        if self.salt:
            seed = int(torch.randint(1 << 62, (), generator=generator)) + self.salt
            generator = torch.Generator().manual_seed(seed)
        try:
            drawn = draw_share(self.source, share)(tasks, generator)
        except OWN_ERRORS as error:  # the user's code may raise any of these
            raise DataError(
                f"`sample` of `{self.name}` failed ({type(error).__name__}: {error}). It is called "
                "with a number of tasks and a torch.Generator, and returns `Tasks`. Change it."
            ) from error
        if not isinstance(drawn, Tasks):
            raise DataError(
                f"`sample` of `{self.name}` gave a {type(drawn).__name__}. It returns "
                "`weightloom.Tasks`. Change it."
            )
        checked = _checked(drawn, self.name)
        return _in_pool(checked, drawn.classes, self.name) if self.pool else checked


def _in_pool(tasks: Tasks, classes: Tensor | None, name: str) -> Tasks:
    """Return tasks with the numbers of their classes in the pool of training classes, checked.

    Raises:
        DataError: If they are not whole numbers from 0 to `MOST_CLASSES`, one for each label.
    """
    if classes is None or tasks.classes is None:
        return tasks._replace(classes=None)
    wanted = tuple(tasks.classes.shape)
    if (
        tuple(classes.shape) != wanted
        or classes.is_floating_point()
        or not 0 <= int(classes.min()) <= int(classes.max()) < MOST_CLASSES
    ):
        raise DataError(
            f"`{name}` drew `Tasks.classes` of shape {tuple(classes.shape)} and {classes.dtype}, "
            f"from {classes.min()} to {classes.max()}. They are the numbers in the pool of the "
            f"class of each label: whole, (tasks, ways), here {wanted}, and from 0 to "
            f"{MOST_CLASSES - 1:,}. Number the classes from 0, or leave `classes` out."
        )
    return tasks._replace(classes=classes)


def _checked(drawn: Tasks, name: str) -> Tasks:
    """Return checked tasks; those of a classification have classes numbered as their labels.

    Raises:
        DataError: If shapes do not fit, a number is not finite, or labels do not count from 0.
    """
    sides = {"support_x": drawn.support_x, "support_y": drawn.support_y}
    sides |= {"query_x": drawn.query_x, "query_y": drawn.query_y}
    tensors = {side: value for side, value in sides.items() if isinstance(value, Tensor)}
    try:
        if len(tensors) < 4:
            raise ShapeError("inputs and targets are not all tensors")
        _check_shapes(drawn)
    except ShapeError as error:
        shapes = {side: tuple(value.shape) for side, value in tensors.items()}
        raise DataError(
            f"`{name}` drew tasks whose shapes do not fit: {shapes} "
            f"({str(error).partition('. ')[0]}). Build them with "
            "`Tasks.of(support_x, support_y, query_x, query_y)`."
        ) from error
    for side, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise DataError(f"`{name}` drew NaN or an infinity in `{side}`. Draw finite numbers.")
    if drawn.support_y.is_floating_point():
        return drawn
    ways = _checked_ways(drawn, name)
    return drawn._replace(classes=torch.arange(ways).expand(len(drawn.support_y), -1))


def _check_shapes(drawn: Tasks) -> None:
    """Raise a `ShapeError` unless the shapes and dtypes of support and query fit together."""
    support, query = drawn.support, drawn.query
    Tasks.of(
        support.x, support.y, query.x, query.y, support_mask=support.mask, query_mask=query.mask
    )
    if support.x.ndim < 3 or support.x.shape[2:] != query.x.shape[2:]:
        raise ShapeError("inputs are (tasks, rows, *event), the same event in support and query")
    if (support.y.dtype, support.y.shape[2:]) != (query.y.dtype, query.y.shape[2:]):
        raise ShapeError("targets of support and query are alike")
    if not bool(support.mask.any() and query.mask.any()):
        raise ShapeError("tasks have examples in support and in query")
    if support.y.ndim != (3 if support.y.is_floating_point() else 2):
        raise ShapeError("targets are (tasks, rows, out), labels (tasks, rows)")


def _checked_ways(drawn: Tasks, name: str) -> int:
    """Return the number of classes: one more than the largest label in support.

    Raises:
        DataError: If it is below 2 or above the rows of support, or a label is out of range.
    """
    there = drawn.support_y[drawn.support_mask]
    ways, rows = int(there.max()) + 1, drawn.support_y.shape[1]
    least, largest = int(drawn.query_y.min()), int(drawn.query_y.max())
    if not 2 <= ways <= rows or int(there.min()) < 0 or not 0 <= least <= largest < ways:
        raise DataError(
            f"`{name}` drew labels that do not fit: from {int(there.min())} to {ways - 1} in "
            f"support, up to {largest} in query. A task has the labels 0 to ways "
            f"- 1, two or more, and an example or more of each in support, which has {rows} rows. "
            "Change `sample`."
        )
    return ways


def own_problem(config: FewShotOptions) -> Problem:
    """Build the problem of a user's own source: a classification or a regression.

    Two tasks are drawn, whose targets decide.

    Args:
        config: Resolved options; ``data`` is ``module:Class``.

    Raises:
        ConfigError: If the class cannot be imported or called, or options do not fit.
        DataError: If the drawn tasks are not valid.
    """
    for option, typed in (("--split", config.split), ("--uneven-shots", config.uneven_shots)):
        if typed:
            raise ConfigError(
                f"`{option}` with `--data {config.data}`. A source of your own decides which tasks "
                f"it draws. Leave `{option}` out."
            )
    drawn = make_source(config, "train", config.shots[0]).sample(
        2, torch.Generator().manual_seed(0)
    )
    return OwnCurves(config) if drawn.support_y.is_floating_point() else OwnClasses(config)


def arguments_of(data: str) -> tuple[Callable[..., Any], set[str]]:
    """Import a user's own source, and return it with those of `TAKEN` in its signature.

    Args:
        data: The source as ``module:Class``.

    Raises:
        ConfigError: If the source cannot be imported.
    """
    made: Callable[..., Any] = imported(data, "A source of tasks", "--data my_tasks:Source")
    try:
        return made, {*TAKEN} & {*inspect.signature(made).parameters}
    except OWN_ERRORS:
        return made, set()


def make_source(config: FewShotOptions, part: str, shots: int, ways: int | None = None) -> OwnTasks:
    """Build the user's own source for one part of the tasks.

    Args:
        config: Resolved options.
        part: One of `PARTS`.
        shots: Support points per class.
        ways: Classes per task; None for the config's first.

    Raises:
        ConfigError: If the class cannot be imported or called, or is no `TaskSource`.
    """
    made, takes = arguments_of(config.data)
    asked = {
        "shots": shots,
        "queries": config.queries,
        "ways": ways or config.ways[0],
        "part": part,
    }
    arguments = {name: value for name, value in asked.items() if name in takes}
    try:
        source = made(**arguments)
    except OWN_ERRORS as error:
        typed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigError(
            f"`{config.data}` could not be called with ({typed}): {type(error).__name__}: {error}. "
            f"It takes no arguments, or any of {', '.join(TAKEN)}. Give all others a default."
        ) from error
    if not isinstance(source, TaskSource):
        raise ConfigError(
            f"`{config.data}` gave a {type(source).__name__}. Data of your own are a `TaskSource`, "
            "with `sample`. Inherit from `weightloom.TaskSource`."
        )
    salt = 0 if "part" in takes else PARTS.index(part)
    return OwnTasks(source, config.data, salt, pool=part == "train")


def protocol_of(data: str) -> str:
    """Return the separation of train, validation and test tasks in words, for the record."""
    if "part" in arguments_of(data)[1]:
        return f"`{data}` decides which tasks are for train, validation and test."
    return (
        f"`{data}` has no argument `part`: train, validation and test are tasks of one source with "
        "different seeds."
    )


class _Own:
    """Sources and settings of a user's own tasks, for classification and regression."""

    config: FewShotOptions

    def _look(self, config: FewShotOptions) -> Tasks:
        """Draw two tasks, and set ``self.config`` with the ways and shots that the class fixes.

        Raises:
            ConfigError: If the class takes ``ways`` but draws another number of classes.
        """
        takes = arguments_of(config.data)[1]
        drawn = make_source(config, "test", config.shots[0]).sample(
            2, torch.Generator().manual_seed(0)
        )
        labels = not drawn.support_y.is_floating_point()
        ways = int(drawn.support_y.max()) + 1 if labels else 1
        if labels and "ways" in takes and ways != config.ways[0]:
            raise ConfigError(
                f"`{config.data}` was asked for {config.ways[0]} ways and drew {ways} classes. "
                "Draw as many as asked."
            )
        config = replace(config, train_ways=config.train_ways or config.ways[0])
        if "ways" not in takes or not labels:
            config = replace(config, ways=(ways,), train_ways=ways)
        if "shots" not in takes:
            config = replace(config, shots=(drawn.support_x.shape[1] // ways,))
        self.config = config
        return drawn

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return the source of the part ``train``, with the largest number of shots."""
        ways = (learner.ways if learner else None) or self.config.train_ways
        return make_source(self.config, "train", max(self.config.shots), ways)

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return the source of the part that is judged: ``test``, or ``validation``."""
        return make_source(self.config, self.config.held_out, shots, ways)

    def validation_source(self, shots: int) -> TaskSource:
        """Return the source of the part ``validation``."""
        return make_source(self.config, "validation", shots)


class OwnClasses(_Own, ClassProblem):
    """Classification problem around a user's own source.

    Args:
        config: Resolved options.

    Raises:
        ConfigError: If the inputs have a shape that needs a base network of the user's own, or
            options do not fit.
        DataError: If the drawn tasks are not valid.
    """

    alike = "folder"

    def __init__(self, config: FewShotOptions) -> None:
        drawn = self._look(config)
        self.event = tuple(drawn.support_x.shape[2:])
        names = tuple(f"class {number}" for number in range(max(self.config.ways)))
        pool = ClassPool(
            torch.zeros(len(names), 1, *self.event),
            torch.ones(len(names), dtype=torch.int64),
            names,
        )
        small: dict[str, Any] = {"channels": 32, "blocks": 2, "levels": 2}
        residual = len(self.event) == 1 or max(self.event[1:]) >= SMALL
        self.pools = Pools(pool, pool, pool, {} if residual else small, residual, start_scale=6.0)
        if not config.base and not (
            len(self.event) == 1 or (len(self.event) == 3 and self.event[1] == self.event[2])
        ):
            raise ConfigError(
                f"`{config.data}` draws inputs of shape {self.event}. The built-in networks read "
                "features (n,) and square images (channels, size, size). Pass a network for "
                "your shape, as in `--base my_networks:Net`."
            )
        self.build(2)
        for ways, shots in product(self.config.ways, self.config.shots):
            self.test_source(shots, ways).sample(2, torch.Generator().manual_seed(0))

    def train_classes(self) -> int:
        """Return a number of training classes that is large enough: twice the largest one drawn.

        `LOOKED_AT` training tasks are drawn. The pool may hold classes that none of them has.

        Raises:
            ConfigError: If the source does not set `Tasks.classes`.
        """
        drawn = self.train_source().sample(LOOKED_AT, torch.Generator().manual_seed(0)).classes
        if drawn is None:
            raise ConfigError(
                f"`probe` learns to tell all training classes apart, and `{self.config.data}` does "
                "not say which classes are in a task. Set `classes` of `Tasks`, (tasks, ways), to "
                "the number in your pool of the class of each label, or leave `probe` out."
            )
        return 2 * (int(drawn.max()) + 1)

    def check_methods(self) -> None:
        """Check that all methods of the config fit these tasks and the base network.

        Raises:
            ConfigError: If a method does not.
        """
        super().check_methods()
        if "probe" in self.config.methods:
            self.train_classes()

    def inputs(self) -> Inputs:
        """Return the preprocessing of rows of numbers, or of arrays."""
        return _inputs(self.event)


class OwnCurves(_Own, CurveProblem):
    """Regression problem around a user's own source.

    Args:
        config: Resolved options.

    Raises:
        ConfigError: If the inputs are not rows of numbers, or options do not fit.
        DataError: If the drawn tasks are not valid.
    """

    alike = "sinusoid"

    def __init__(self, config: FewShotOptions) -> None:
        drawn = self._look(config)
        if drawn.support_x.ndim != 3:
            raise ConfigError(
                f"`{config.data}` draws inputs of shape {tuple(drawn.support_x.shape[2:])} with "
                "floating-point targets. The inputs of a regression are rows of numbers, "
                "(tasks, points, features). Flatten them."
            )
        self.on_grid = bool(observed(drawn).any())
        self.x_dim, self.y_dim = drawn.support_x.shape[2], drawn.support_y.shape[2]
        self.pools, self.table, self.centred = {}, None, False
        self.build(self.y_dim)

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """Return builders of the methods for curves, and of `kernel`, by name."""
        return super().methods() | {"kernel": self.kernel}

    def check_methods(self) -> None:
        """Check that all methods of the config fit these tasks and the base network.

        Raises:
            ConfigError: If a method does not, as `kernel` if the tasks share no grid.
        """
        super().check_methods()
        if "kernel" in self.config.methods:
            self._known()

    def _known(self) -> tuple[Tensor, Tensor]:
        """Draw training tasks; return the positions that they share, and the values there.

        Raises:
            ConfigError: If their points, support and query together, are not at the same positions.
        """
        source = self.train_source()
        drawn = source.sample(KNOWN_TASKS, torch.Generator().manual_seed(KNOWN_SEED))
        grid = shared_grid(drawn)
        if grid is None:
            raise ConfigError(
                f"`kernel` with `--data {self.config.data}`. It is a weighted mean of known "
                "functions, so all must be known at the same positions; those of support and query "
                f"differ between {KNOWN_TASKS} training tasks. Leave `kernel` out, or draw tasks "
                "whose support and query points together are one grid."
            )
        return grid

    def kernel(self) -> Learner:
        """Build kernel regression over drawn training tasks that share their positions."""
        return self._kernel_over(*self._known())

    def inputs(self) -> Inputs:
        """Return the preprocessing of rows of numbers."""
        return _inputs((self.x_dim,))

    def targets(self) -> Targets:
        """Return the targets, without scaling."""
        return Targets(
            ("y",) if self.y_dim == 1 else tuple(f"y{number}" for number in range(self.y_dim))
        )


def _inputs(event: tuple[int, ...]) -> Inputs:
    if len(event) > 1:
        return Arrays(event)
    return Numbers(("x",) if event[0] == 1 else tuple(f"x{number}" for number in range(event[0])))
