"""Interface of few-shot problems: sources of tasks, base network, methods by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Targets
from weightloom.apps.fewshot.methods import builds_of
from weightloom.apps.registry import called
from weightloom.errors import ConfigError, nearest
from weightloom.learners.inner_steps import InnerSteps
from weightloom.learners.learner import Learner
from weightloom.runs.record import Role
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share

NORMS = ("hyper-film", "film", "shared-film")
"""Methods that generate norms of the library's own base networks, and are not available with a
user's network."""


READ_AT_ONCE = 32
"""Examples per pass of `Problem.reader`."""


class Yardstick(NamedTuple):
    """Row of the table that does not compete, such as a ceiling."""

    method: str
    """Name in the table."""
    role: Role
    """Role of the row."""
    learner: Learner
    """The judged model."""
    seen: Callable[[Tasks], Tasks] | None = None
    """Changes the drawn tasks before the model sees them; None for no change."""


class Problem(ABC):
    """A data set as a few-shot problem: sources of tasks, base network, methods, preprocessing."""

    kind: Literal["classification", "regression"]
    """Kind of the tasks."""
    config: FewShotOptions
    """Resolved options."""
    notices: tuple[str, ...] = ()
    """Sentences about the data for the user, such as the files that were skipped."""
    at_once: int
    """Tasks per pass of judging."""
    alike: str = ""
    """Data set of the library whose methods and settings are used; empty for the problem's own."""
    without: tuple[str, ...] = ()
    """Methods of that data set that need knowledge which these tasks lack."""
    on_grid: bool = False
    """True if observed points are also query points, so that the others are scored apart."""
    many: int = 0
    """Tasks that adaptation is timed on at the end of a run; 0 for no timing."""

    @property
    def ways(self) -> int | None:
        """Number of rows of a head shared by all tasks; None if the problem fixes none."""
        return None

    @abstractmethod
    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return the source of meta-training tasks.

        Args:
            learner: The method to train, which may need tasks of certain sizes; None for any.
        """

    @abstractmethod
    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return the source of tasks never seen in meta-training.

        Args:
            shots: Support points per class.
            ways: Classes per task; None for the config's first.

        Raises:
            ConfigError: If the data have too few classes or examples.
        """

    @abstractmethod
    def validation_source(self, shots: int) -> TaskSource:
        """Return the source of tasks that are scored during meta-training, none of the table's."""

    @abstractmethod
    def build(self, outputs: int) -> nn.Module:
        """Build the base network of every method, newly initialised, for a number of outputs."""

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """Return builders of the methods for these tasks, by name.

        They are those of `weightloom.apps.fewshot.methods` for ``alike`` or the data set, less
        ``without``, and less `NORMS` with a base network of the user's own.
        """
        builds = builds_of(self.alike or self.config.kind)
        odd = [
            *self.without,
            *(NORMS if self.config.base and self.kind == "classification" else ()),
        ]
        return {name: partial(build, self) for name, build in builds.items() if name not in odd}

    def yardsticks(self, learner: Learner) -> list["Yardstick"]:
        """Return rows that do not compete, such as a ceiling.

        Args:
            learner: The main method of the run, trained.
        """
        return []

    @abstractmethod
    def setting(self, shots: int, ways: int) -> str:
        """Return a setting in words, as in "3-way 1-shot"."""

    def inputs(self) -> Inputs:
        """Return the preprocessing of a user's own examples, the same as in training.

        Raises:
            ConfigError: If the problem defines no preprocessing.
        """
        raise ConfigError(
            f"`--data {self.config.data}` takes no examples of your own: it defines no "
            f"preprocessing. Write `inputs` of {type(self).__name__}."
        )

    def reader(self) -> nn.Module | None:
        """Return the frozen network between `inputs` and the base network; None for none."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return entries of ``network.json`` about the reader."""
        return {}

    def encode(self, x: Tensor) -> Tensor:
        """Turn examples, as `inputs` gives them, into inputs of the base network.

        Args:
            x: Examples, (examples, *event).
        """
        reader = self.reader()
        if reader is None:
            return x
        with torch.no_grad():
            return torch.cat([reader(part) for part in x.split(READ_AT_ONCE)])

    def targets(self) -> Targets | None:
        """Return names and scale of the targets of a regression; None for a classification."""
        return None

    def labels(self, names: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the labels of a user's own examples, and the class of each label.

        Labels count from 0 in the order of first appearance.

        Args:
            names: Class of each example.

        Raises:
            DataError: If the problem has fixed classes and a name is not one of them.
        """
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([number[name] for name in names]), tuple(number)

    def check_methods(self) -> None:
        """Check that all methods of the config fit these tasks and the base network.

        Raises:
            ConfigError: If a method does not.
        """
        known = self.methods()
        for method in self.config.methods:
            if ":" not in method and method not in known:
                base = f" --base {self.config.base}" if self.config.base else ""
                raise ConfigError(
                    f"`{method}` does not go with `--data {self.config.data}{base}`, a "
                    f"{self.kind}. {nearest(method, known)}"
                )

    def settings(self) -> list[tuple[int, int]]:
        """Return ways and shots of every block of the table."""
        return list(product(self.config.ways or (), self.config.shots or ()))

    def up_to(self, shots: int) -> str:
        """Return the number of shots in words, as in "5", or "1-to-5" if shots are uneven."""
        return f"1-to-{shots}" if self.config.uneven_shots and shots > 1 else str(shots)

    def learner(self, method: str) -> Learner:
        """Build a method by name, or one of the user's own.

        With ``mode="bilevel"`` a trained method without inner loop is wrapped in gradient steps.

        Args:
            method: A name, or ``module:Class`` for a callable that takes this problem and returns a
                `Learner`.

        Raises:
            ConfigError: If the module or class does not exist, or returns no `Learner`.
        """
        own = ":" in method
        learner = (
            called(method, "A method", "--method my_methods:MyLearner", self)
            if own
            else self.methods()[method]()
        )
        if not isinstance(learner, Learner):
            raise ConfigError(
                f"`{method}` gave a {type(learner).__name__}. A method is a `Learner`, with "
                "`adapt` and `predict`. Inherit from `weightloom.learners.learner.Learner`."
            )
        if self.config.mode == "bilevel" and learner.trained and not learner.inner_loop:
            return InnerSteps(learner, self.config.inner_steps or 1, self.config.inner_lr or 0.01)
        return learner


class MixedTasks(TaskSource):
    """Source that draws each batch from one of several sources, chosen at random.

    Args:
        sources: Sources with equal chances.
    """

    def __init__(self, sources: list[TaskSource]) -> None:
        self.sources = sources

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Choose a source at random, and draw tasks from it."""
        choice = int(torch.randint(len(self.sources), (), generator=generator))
        return draw_share(self.sources[choice], share)(tasks, generator)


def observed(tasks: Tasks) -> Tensor:
    """Return True for query points at the position of a support point, (tasks, queries).

    Inputs are one tensor.

    Example:
        >>> x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> tasks = Tasks.of(x[:, :1], torch.zeros(1, 1, 1), x, torch.zeros(1, 2, 1))
        >>> observed(tasks)
        tensor([[ True, False]])
    """
    each = zip(tasks.support_x, tasks.support_mask, tasks.query_x, strict=True)
    # Task by task: all pairs of points of all tasks would not fit in memory.
    return torch.stack([(x[:, None] == near[mask]).all(2).any(1) for near, mask, x in each])
