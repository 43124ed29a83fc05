"""What every few-shot problem is, and how its methods are found by name."""

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

NORMS = ("hyper-film", "film", "protonet-unit")
"""Methods that generate norms of the library's own base networks, or add one, and do not know those
of others."""


class Yardstick(NamedTuple):
    """A row of the table that does not compete, such as a ceiling."""

    method: str
    """Its name."""
    role: Role
    learner: Learner
    """The judged model."""
    seen: Callable[[Tasks], Tasks] | None = None
    """Makes the tasks that it is given from those drawn; None gives them as they are."""


class Problem(ABC):
    """A data set, seen as a few-shot problem."""

    kind: Literal["classification", "regression"]
    config: FewShotOptions
    notices: tuple[str, ...] = ()
    """What a person should know of the data before it goes on, such as files that were skipped."""
    at_once: int
    """How many tasks are judged in one pass."""
    alike: str = ""
    """Data set of the library whose methods, with their settings, suit these tasks; empty: the data
    set itself."""
    without: tuple[str, ...] = ()
    """Methods among them that know more of that data set than is known of these."""
    many: int = 0
    """Tasks that are adapted to at the end of a run to see how long that takes; 0: it is not looked
    at."""

    @property
    def ways(self) -> int | None:
        """Rows of a head whose number is fixed; None where outputs are no classes."""
        return None

    @abstractmethod
    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Tasks of meta-training, as they suit a method; None for any."""

    @abstractmethod
    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Tasks never seen in meta-training, with ``shots`` support points per class.

        ``ways`` None: the first.

        Raises:
            ConfigError: If there is not enough to draw from.
        """

    @abstractmethod
    def validation_source(self, shots: int) -> TaskSource:
        """Tasks to watch during meta-training; never those of the final table."""

    @abstractmethod
    def build(self, outputs: int) -> nn.Module:
        """The base network of every method, newly initialised, for a number of outputs."""

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """Builders of the methods that solve these tasks, by name, as `weightloom.apps.fewshot.methods` has them."""
        builds = builds_of(self.alike or self.config.kind)
        odd = [
            *self.without,
            *(NORMS if self.config.base and self.kind == "classification" else ()),
        ]
        return {name: partial(build, self) for name, build in builds.items() if name not in odd}

    def yardsticks(self, learner: Learner) -> list["Yardstick"]:
        """Return rows that no method competes for, such as a ceiling.

        Args:
            learner: The method that the run is about, trained.
        """
        return []

    @abstractmethod
    def setting(self, shots: int, ways: int) -> str:
        """Say which tasks these are, as in "3-way 1-shot"."""

    def inputs(self) -> Inputs:
        """Return how an example of a user's own is read: the same as in training.

        Raises:
            ConfigError: If the problem takes none.
        """
        raise ConfigError(
            f"`--data {self.config.data}` takes no examples of your own: it does not say how they "
            f"are read. Write `inputs` of {type(self).__name__}."
        )

    def targets(self) -> Targets | None:
        """Return what a regression predicts, in its own unit; None for a classification."""
        return None

    def labels(self, names: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the labels of examples of a user's own, and the class of each label, in the order given.

        Raises:
            DataError: If there is no such class.
        """
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([number[name] for name in names]), tuple(number)

    def check_methods(self) -> None:
        """Raise a `ConfigError` unless all methods of the config go with these tasks and this base."""
        known = self.methods()
        for method in self.config.methods:
            if ":" not in method and method not in known:
                base = f" --base {self.config.base}" if self.config.base else ""
                raise ConfigError(
                    f"`{method}` does not go with `--data {self.config.data}{base}`, a "
                    f"{self.kind}. {nearest(method, known)}"
                )

    def settings(self) -> list[tuple[int, int]]:
        """Ways and shots of every block of the table."""
        return list(product(self.config.ways or (), self.config.shots or ()))

    def up_to(self, shots: int) -> str:
        """Say how many shots there are: one number, or from 1 to it where they are unequal."""
        return f"1-to-{shots}" if self.config.uneven_shots and shots > 1 else str(shots)

    def learner(self, method: str) -> Learner:
        """Build a method by name, or one of the user's own.

        Args:
            method: A name, or ``module:Class`` for something that is called with this problem and
                gives a `Learner`.

        Raises:
            ConfigError: If there is no such module or class, or what it gives is not a `Learner`.
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
    """Draw from one of several sources, chosen by chance for each batch.

    Args:
        sources: Where to draw from.
    """

    def __init__(self, sources: list[TaskSource]) -> None:
        self.sources = sources

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Choose a source, then draw."""
        choice = int(torch.randint(len(self.sources), (), generator=generator))
        return draw_share(self.sources[choice], share)(tasks, generator)
