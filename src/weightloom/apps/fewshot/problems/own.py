"""Tasks of the user's own: a `TaskSource` named on the command line, and what suits the tasks that it draws.

In:   ``module:Class``, called without arguments, or with those of ``shots``, ``queries``, ``ways``
      and ``part`` that its signature has.
Out:  a classification where labels are whole numbers, a regression where targets are fractions.
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
from weightloom.apps.fewshot.problems.problem import Problem
from weightloom.apps.registry import OWN_ERRORS, imported
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.learners.learner import Learner
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share
from weightloom.tasks.data import ClassPool

TAKEN = ("shots", "queries", "ways", "part")
"""Arguments that are passed where the class takes them."""
PARTS = ("train", "validation", "test")
SMALL = 16
"""Images of fewer pixels a side are read by a small network."""


class OwnTasks(TaskSource):
    """Tasks of a user's source, checked.

    Args:
        source: Draws them.
        name: For messages.
        salt: Another number draws other tasks from the same generator.
    """

    def __init__(self, source: TaskSource, name: str, salt: int = 0) -> None:
        self.source, self.name, self.salt = source, name, salt

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw and check."""
        if self.salt:
            seed = int(torch.randint(1 << 62, (), generator=generator)) + self.salt
            generator = torch.Generator().manual_seed(seed)
        try:
            drawn = draw_share(self.source, share)(tasks, generator)
        except OWN_ERRORS as error:  # sources of one's own raise what they like
            raise DataError(
                f"`sample` of `{self.name}` failed ({type(error).__name__}: {error}). It is called "
                "with a number of tasks and a torch.Generator, and returns `Tasks`. Change it."
            ) from error
        if not isinstance(drawn, Tasks):
            raise DataError(
                f"`sample` of `{self.name}` gave a {type(drawn).__name__}. It returns "
                "`weightloom.Tasks`. Change it."
            )
        return _checked(drawn, self.name)


def _checked(drawn: Tasks, name: str) -> Tasks:
    """Return tasks whose shapes and numbers fit.

    Labels count from 0 and stand for classes of the same numbers.
    """
    sides = {"support_x": drawn.support_x, "support_y": drawn.support_y}
    sides |= {"query_x": drawn.query_x, "query_y": drawn.query_y}
    tensors = [value for value in sides.values() if isinstance(value, Tensor)]
    shapes = {
        side: tuple(value.shape) for side, value in sides.items() if isinstance(value, Tensor)
    }
    labels = len(tensors) == 4 and not drawn.support_y.is_floating_point()
    try:
        if len(tensors) < 4:
            raise ShapeError("inputs and targets are not all tensors")
        Tasks.of(*sides.values(), support_mask=drawn.support_mask, query_mask=drawn.query_mask)
        if drawn.support_x.ndim < 3 or drawn.support_x.shape[2:] != drawn.query_x.shape[2:]:
            raise ShapeError(
                "inputs are (tasks, rows, *event), the same event in support and query"
            )
        if (
            drawn.support_y.dtype != drawn.query_y.dtype
            or drawn.support_y.shape[2:] != drawn.query_y.shape[2:]
        ):
            raise ShapeError("targets of support and query are alike")
        if drawn.support_y.ndim != (2 if labels else 3):
            raise ShapeError("targets are (tasks, rows, out), labels (tasks, rows)")
    except ShapeError as error:
        raise DataError(
            f"`{name}` drew tasks whose shapes do not fit: {shapes} "
            f"({str(error).partition('. ')[0]}). Build them with "
            "`Tasks.of(support_x, support_y, query_x, query_y)`."
        ) from error
    for side, value in sides.items():
        if not bool(value.isfinite().all()):
            raise DataError(f"`{name}` drew NaN or an infinity in `{side}`. Draw finite numbers.")
    if not labels:
        return drawn
    there = drawn.support_y[drawn.support_mask]
    ways, rows = int(there.max()) + 1, drawn.support_y.shape[1]
    if (
        not 2 <= ways <= rows
        or int(there.min()) < 0
        or not 0 <= int(drawn.query_y.min()) <= int(drawn.query_y.max()) < ways
    ):
        raise DataError(
            f"`{name}` drew labels that do not fit: from {int(there.min())} to {ways - 1} in "
            f"support, up to {int(drawn.query_y.max())} in query. A task has the labels 0 to ways "
            f"- 1, two or more, and an example or more of each in support, which has {rows} rows. "
            "Change `sample`."
        )
    return drawn._replace(classes=torch.arange(ways).expand(len(drawn.support_y), -1))


def own_problem(config: FewShotOptions) -> Problem:
    """Draw tasks from a source of the user's own, and set a problem around it that suits them.

    Raises:
        ConfigError: If the class cannot be imported or called, or options do not fit.
        DataError: If what it draws does not fit.
    """
    for option, typed in (("--split", config.split), ("--uneven-shots", config.uneven_shots)):
        if typed:
            raise ConfigError(
                f"`{option}` with `--data {config.data}`. A source of your own says itself which "
                f"tasks it draws. Leave `{option}` out."
            )
    drawn = make_source(config, "train", config.shots[0]).sample(
        2, torch.Generator().manual_seed(0)
    )
    return OwnCurves(config) if drawn.support_y.is_floating_point() else OwnClasses(config)


def arguments_of(data: str) -> tuple[Callable[..., Any], set[str]]:
    """Import a source of the user's own, and see which of `TAKEN` it takes."""
    made: Callable[..., Any] = imported(data, "A source of tasks", "--data my_tasks:Source")
    try:
        return made, {*TAKEN} & {*inspect.signature(made).parameters}
    except OWN_ERRORS:
        return made, set()


def make_source(config: FewShotOptions, part: str, shots: int, ways: int | None = None) -> OwnTasks:
    """Call the class of the user's own for one part of the tasks."""
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
    except OWN_ERRORS as error:  # as above
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
    return OwnTasks(source, config.data, 0 if "part" in takes else PARTS.index(part))


def protocol_of(data: str) -> str:
    """Say how tasks to train on and to be judged on are kept apart, for the record."""
    if "part" in arguments_of(data)[1]:
        return f"`{data}` says itself which tasks are for train, validation and test."
    return f"`{data}` has no argument `part`: train, validation and test are tasks of one source with seeds of their own."


class _Own:
    """What both kinds have in common: sources, and the settings that the class can be asked for."""

    config: FewShotOptions

    def _look(self, config: FewShotOptions) -> Tasks:
        """Draw once, and take from the tasks what the class is not asked for."""
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
        """The part to train on, with the most shots."""
        ways = (learner.ways if learner else None) or self.config.train_ways
        return make_source(self.config, "train", max(self.config.shots), ways)

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """The part to be judged on."""
        return make_source(
            self.config,
            "validation" if self.config.held_out == "validation" else "test",
            shots,
            ways,
        )

    def validation_source(self, shots: int) -> TaskSource:
        """The part to watch a training by."""
        return make_source(self.config, "validation", shots)


class OwnClasses(_Own, ClassProblem):
    """Classification of tasks that a source of the user's own draws.

    Args:
        config: A resolved config.
    """

    alike = "folder"
    without = ("probe",)

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
        self.train = self.validation = self.held_out = pool
        if not config.base and not (
            len(self.event) == 1 or (len(self.event) == 3 and self.event[1] == self.event[2])
        ):
            raise ConfigError(
                f"`{config.data}` draws inputs of shape {self.event}. Without more ado features "
                "(n,) and square images (channels, size, size) are read. Pass a network for them, "
                "as in `--base my_networks:Net`."
            )
        self.build(2)
        for ways, shots in product(self.config.ways, self.config.shots):
            self.test_source(shots, ways).sample(2, torch.Generator().manual_seed(0))

    def inputs(self) -> Inputs:
        """Rows of numbers, or arrays."""
        return _inputs(self.event)


class OwnCurves(_Own, CurveProblem):
    """Regression of tasks that a source of the user's own draws.

    Args:
        config: A resolved config.
    """

    alike = "sinusoid"
    without = ("gaussian",)

    def __init__(self, config: FewShotOptions) -> None:
        drawn = self._look(config)
        if drawn.support_x.ndim != 3:
            raise ConfigError(
                f"`{config.data}` draws inputs of shape {tuple(drawn.support_x.shape[2:])} with "
                "targets that are fractions. The inputs of a regression are rows of numbers, "
                "(tasks, points, features). Flatten them."
            )
        self.x_dim, self.y_dim = drawn.support_x.shape[2], drawn.support_y.shape[2]
        self.pools, self.table, self.centred = {}, None, False
        self.build(self.y_dim)

    def inputs(self) -> Inputs:
        """Rows of numbers."""
        return _inputs((self.x_dim,))

    def targets(self) -> Targets:
        """As the source gives them."""
        return Targets(
            ("y",) if self.y_dim == 1 else tuple(f"y{number}" for number in range(self.y_dim))
        )


def _inputs(event: tuple[int, ...]) -> Inputs:
    if len(event) > 1:
        return Arrays(event)
    return Numbers(("x",) if event[0] == 1 else tuple(f"x{number}" for number in range(event[0])))
