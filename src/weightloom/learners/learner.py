"""What every few-shot method is: a support set in, parameters of a working network out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from weightloom.losses import TaskLoss, loss_of_those_there, loss_per_task
from weightloom.params import Params
from weightloom.tasks import Examples, Tasks, TaskSource
from weightloom.training import History, TrainOptions, train

Support = Examples
"""Data to adapt on: the ``support`` of some `Tasks`."""


class Learner(nn.Module, ABC):
    """A few-shot method: ``fit`` on many tasks, ``adapt`` to the support set of new ones, ``predict`` their queries.

    Every method, ours or a comparator, answers with parameters, so that all are trained, run,
    timed, exported and compared by the same code. To bring your own, inherit and write ``adapt``
    and ``predict``.

    Rows of a task come in any order, classes with any number of examples each, what is masked has
    no effect. Labels say how many ways a task has; of `Tasks.hidden` and `Tasks.classes` a method
    reads nothing unless it says so.
    """

    base: nn.Module
    """The network whose parameters ``adapt`` returns."""

    loss_per_task: TaskLoss = staticmethod(loss_per_task)
    """Outputs and targets to one loss per task. By default cross-entropy for labels, squared error
    elsewhere."""

    trained: ClassVar[bool] = True
    """Whether ``fit`` changes it; False for what works on each task alone."""

    inner_loop: ClassVar[bool] = False
    """Whether ``adapt`` takes gradient steps through which the method is trained."""

    ways: int | None = None
    """How many classes a task must have, for methods whose head has a fixed number of rows; None
    for any."""

    @abstractmethod
    def adapt(self, support: Support) -> Params:
        """Return parameters of ``base`` for each task, from its support set."""

    @abstractmethod
    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run ``base`` with each task's parameters on inputs (tasks, batch, *event)."""

    def condition(self, support: Support) -> Tensor | None:
        """Return what the method knows of each task as vectors, to be drawn on a map.

        None if it has none.
        """
        return None

    def answer(self, tasks: Tasks) -> Tensor:
        """Adapt and predict; the query targets are not read."""
        return self.predict(self.adapt(tasks.support), tasks.query_x)

    def forward(self, tasks: Tasks) -> Tensor:
        """Return the loss of each task, (tasks,): what ``fit`` differentiates."""
        return self.loss_of(self.answer(tasks), tasks.query)

    def loss_of(self, outputs: Tensor, examples: Examples) -> Tensor:
        """Return the loss of each task over the examples that are there, (tasks,)."""
        return loss_of_those_there(self.loss_per_task, outputs, examples.y, examples.mask)

    @staticmethod
    def ways_of(examples: Examples) -> int:
        """Return how many ways the tasks have.

        One more than the largest label of an example that is there.
        """
        return 1 + int(examples.y.masked_fill(~examples.mask, -1).max())

    def fit(self, source: TaskSource, options: TrainOptions, **how: Any) -> History:
        """Meta-train on tasks drawn from ``source``.

        Args:
            source: Where tasks are drawn from.
            options: Steps, tasks per step, learning rate and so on.
            **how: What `weightloom.training.train` takes: ``run``, ``resume``, ``fabric``,
                ``evaluate``, ``quiet``.
        """
        return train(self, source, None, options, **how)

    def blocks(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What alternating training trains in turn.

        The base network's own values, and all that is around it.
        """
        own = {id(parameter) for parameter in self.base.parameters()}
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.parameters():
            if parameter.requires_grad:
                sides[id(parameter) not in own].append(parameter)
        return sides
