"""Tasks of the user's own: a `TaskSource` named on the command line, and what suits the tasks that it draws.

In:   ``module:Class``, called without arguments, or with those of ``shots``, ``queries``, ``ways`` and ``part`` that
      its signature has.
Out:  a classification where labels are whole numbers, a regression where targets are fractions.
Knows nothing of how tasks are made.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Arrays, Inputs, Numbers, Targets
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.problems.curves import CurveProblem
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.apps.fewshot.problems.problem import Problem
from weightloom.apps.registry import imported
from weightloom.errors import ConfigError, DataError
from weightloom.learners.learner import Learner
from weightloom.learners.whole_network import HyperRegressor
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share
from weightloom.tasks.data import ClassPool

TAKEN = ("shots", "queries", "ways", "part")
"""Arguments that are passed where the class takes them."""
PARTS = ("train", "validation", "test")
SMALL = 16
"""Images of fewer pixels a side are read by a small network."""


class OwnTasks(TaskSource):
    """Tasks of a user's source, checked, and class by class.

    Args:
        source: Draws them.
        name: For messages.
        salt: Another number draws other tasks from the same generator.
    """

    def __init__(self, source: TaskSource, name: str, salt: int = 0) -> None:
        self.source, self.name, self.salt = source, name, salt

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw, check, and put the examples of each class side by side."""
        if self.salt:
            seed = int(torch.randint(1 << 62, (), generator=generator)) + self.salt
            generator = torch.Generator().manual_seed(seed)
        try:
            drawn = draw_share(self.source, share)(tasks, generator)
        except Exception as error:  # sources of one's own raise what they like
            raise DataError(
                f"`sample` of `{self.name}` failed ({type(error).__name__}: {error}). It is called with a number of "
                "tasks and a torch.Generator, and returns `Tasks`. Change it."
            ) from error
        if not isinstance(drawn, Tasks):
            raise DataError(
                f"`sample` of `{self.name}` gave a {type(drawn).__name__}. It returns `weightloom.Tasks`. Change it."
            )
        self._check(drawn)
        return drawn if drawn.support_y.is_floating_point() else self._in_order(drawn)

    def _check(self, drawn: Tasks) -> None:
        wanted = drawn.support_x.shape[:2]
        shapes = {name: tuple(getattr(drawn, name).shape) for name in ("support_x", "support_y", "query_x", "query_y")}
        points = drawn.query_x.shape[:2]
        fit = (
            drawn.support_x.ndim >= 3
            and drawn.support_mask.shape == wanted == drawn.support_y.shape[:2]
            and drawn.query_x.shape[2:] == drawn.support_x.shape[2:]
            and drawn.query_y.shape == (*points, *drawn.support_y.shape[2:])
            and drawn.support_y.ndim == (3 if drawn.support_y.is_floating_point() else 2)
        )
        if not fit:
            raise DataError(
                f"`{self.name}` drew tasks whose shapes do not fit: {shapes}, mask {tuple(drawn.support_mask.shape)}. "
                "They are (tasks, points, *event) for inputs, (tasks, points, out) for targets or (tasks, points) for "
                "labels, and (tasks, points) for the mask. Change `sample`."
            )
        for name in ("support_x", "query_x", "support_y", "query_y"):
            if not bool(getattr(drawn, name).isfinite().all()):
                raise DataError(f"`{self.name}` drew NaN or an infinity in `{name}`. Draw finite numbers.")

    def _in_order(self, drawn: Tasks) -> Tasks:
        """Sort examples by label; all tasks have as many classes, and as many examples of each."""
        ways = int(drawn.support_y.max()) + 1
        labels = torch.arange(ways)[:, None]
        counts = [(y[:, None] == labels).sum(2) for y in (drawn.support_y, drawn.query_y)]
        even = all(
            len(each.unique()) == 1 and int(each[0].sum()) == y.shape[1]
            for each, y in zip(counts, (drawn.support_y, drawn.query_y), strict=True)
        )
        if ways < 2 or not even:
            raise DataError(
                f"`{self.name}` drew labels that do not fit. Each task has the labels 0 to ways - 1, two or more, as "
                "many support examples of each, and as many queries of each. Change `sample`; a support example that "
                "is not there has its label all the same and is masked."
            )
        support, query = (y.argsort(dim=1, stable=True) for y in (drawn.support_y, drawn.query_y))
        rows = torch.arange(len(support))[:, None]
        return Tasks(
            drawn.support_x[rows, support],
            drawn.support_y[rows, support],
            drawn.support_mask[rows, support],
            drawn.query_x[rows, query],
            drawn.query_y[rows, query],
            torch.arange(ways).expand(len(support), -1),
        )


def own_problem(config: FewShotOptions) -> Problem:
    """Draw tasks from a source of the user's own, and set a problem around it that suits them.

    Raises:
        ConfigError: If the class cannot be imported or called, or options do not fit.
        DataError: If what it draws does not fit.
    """
    for option, typed in (("--split", config.split), ("--uneven-shots", config.uneven_shots)):
        if typed:
            raise ConfigError(
                f"`{option}` with `--data {config.data}`. A source of your own says itself which tasks it draws. "
                f"Leave `{option}` out."
            )
    drawn = make_source(config, "train", config.shots[0]).sample(2, torch.Generator().manual_seed(0))
    return OwnCurves(config) if drawn.support_y.is_floating_point() else OwnClasses(config)


def arguments_of(data: str) -> tuple[Callable[..., Any], set[str]]:
    """Import a source of the user's own, and see which of `TAKEN` it takes."""
    made: Callable[..., Any] = imported(data, "A source of tasks", "--data my_tasks:Source")
    try:
        return made, {*TAKEN} & {*inspect.signature(made).parameters}
    except (TypeError, ValueError):
        return made, set()


def make_source(config: FewShotOptions, part: str, shots: int, ways: int | None = None) -> OwnTasks:
    """Call the class of the user's own for one part of the tasks."""
    made, takes = arguments_of(config.data)
    asked = {"shots": shots, "queries": config.queries, "ways": ways or config.ways[0], "part": part}
    arguments = {name: value for name, value in asked.items() if name in takes}
    try:
        source = made(**arguments)
    except Exception as error:  # as above
        typed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigError(
            f"`{config.data}` could not be called with ({typed}): {type(error).__name__}: {error}. It takes no "
            f"arguments, or any of {', '.join(TAKEN)}. Give all others a default."
        ) from error
    if not isinstance(source, TaskSource):
        raise ConfigError(
            f"`{config.data}` gave a {type(source).__name__}. Data of your own are a `TaskSource`, with `sample`. "
            "Inherit from `weightloom.TaskSource`."
        )
    return OwnTasks(source, config.data, 0 if "part" in takes else PARTS.index(part))


def protocol_of(data: str) -> str:
    """Say how tasks to train on and to be judged on are kept apart, for the record."""
    if "part" in arguments_of(data)[1]:
        return f"`{data}` says itself which tasks are for train, validation and test."
    return (
        f"`{data}` has no argument `part`: train, validation and test are tasks of one source with seeds of their own."
    )


class _Own:
    """What both kinds have in common: sources, and the settings that the class can be asked for."""

    config: FewShotOptions

    def _look(self, config: FewShotOptions) -> Tasks:
        """Draw once, and take from the tasks what the class is not asked for."""
        takes = arguments_of(config.data)[1]
        drawn = make_source(config, "test", config.shots[0]).sample(2, torch.Generator().manual_seed(0))
        labels = not drawn.support_y.is_floating_point()
        ways = int(drawn.support_y.max()) + 1 if labels else 1
        if labels and "ways" in takes and ways != config.ways[0]:
            raise ConfigError(
                f"`{config.data}` was asked for {config.ways[0]} ways and drew {ways} classes. Draw as many as asked."
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
        return make_source(self.config, "validation" if self.config.held_out == "validation" else "test", shots, ways)

    def validation_source(self, shots: int) -> TaskSource:
        """The part to watch a training by."""
        return make_source(self.config, "validation", shots)


class OwnClasses(_Own, ClassProblem):
    """Classification of tasks that a source of the user's own draws.

    Args:
        config: A resolved config.
    """

    def __init__(self, config: FewShotOptions) -> None:
        drawn = self._look(config)
        self.event = tuple(drawn.support_x.shape[2:])
        names = tuple(f"class {number}" for number in range(max(self.config.ways)))
        pool = ClassPool(torch.zeros(len(names), 1, *self.event), torch.ones(len(names), dtype=torch.int64), names)
        small: dict[str, Any] = {"channels": 32, "blocks": 2, "levels": 2}
        residual = len(self.event) == 1 or max(self.event[1:]) >= SMALL
        self.pools = Pools(pool, pool, pool, {} if residual else small, residual, start_scale=6.0)
        self.train = self.validation = self.held_out = pool
        if not config.base and not (len(self.event) == 1 or (len(self.event) == 3 and self.event[1] == self.event[2])):
            raise ConfigError(
                f"`{config.data}` draws inputs of shape {self.event}. Without more ado features (n,) and square images "
                "(channels, size, size) are read. Pass a network for them, as in `--base my_networks:Net`."
            )
        self.build(2)
        for ways, shots in product(self.config.ways, self.config.shots):
            self.test_source(shots, ways).sample(2, torch.Generator().manual_seed(0))

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """All but those that are told what all classes of training are."""
        return {name: build for name, build in super().methods().items() if name != "probe"}

    def inputs(self) -> Inputs:
        """Rows of numbers, or arrays."""
        return _inputs(self.event)


class OwnCurves(_Own, CurveProblem):
    """Regression of tasks that a source of the user's own draws.

    Args:
        config: A resolved config.
    """

    def __init__(self, config: FewShotOptions) -> None:
        drawn = self._look(config)
        if drawn.support_x.ndim != 3:
            raise ConfigError(
                f"`{config.data}` draws inputs of shape {tuple(drawn.support_x.shape[2:])} with targets that are "
                "fractions. The inputs of a regression are rows of numbers, (tasks, points, features). Flatten them."
            )
        self.x_dim, self.y_dim = drawn.support_x.shape[2], drawn.support_y.shape[2]
        self.pools, self.table, self.centred = {}, None, False
        self.build(self.y_dim)

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """All but the Gaussian, which knows sinusoids."""
        return {name: build for name, build in super().methods().items() if name != "gaussian"}

    def _ours(self) -> Learner:
        return HyperRegressor(self.build(self.y_dim), self.x_dim, self.y_dim)

    def inputs(self) -> Inputs:
        """Rows of numbers."""
        return _inputs((self.x_dim,))

    def targets(self) -> Targets:
        """As the source gives them."""
        return Targets(("y",) if self.y_dim == 1 else tuple(f"y{number}" for number in range(self.y_dim)))


def _inputs(event: tuple[int, ...]) -> Inputs:
    if len(event) > 1:
        return Arrays(event)
    return Numbers(("x",) if event[0] == 1 else tuple(f"x{number}" for number in range(event[0])))
