"""Interface of every few-shot method: a support set in, parameters of a working network out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from weightloom.losses import TaskLoss, loss_of_those_there, loss_per_task
from weightloom.params import Params
from weightloom.tasks import Examples, Tasks, TaskSource
from weightloom.training import History, TrainOptions, train

Support = Examples
"""Examples to adapt to: the ``support`` of `Tasks`."""


class Learner(nn.Module, ABC):
    """Few-shot method: ``fit`` on many tasks, ``adapt`` to support sets, ``predict`` their queries.

    Every method returns parameters from ``adapt``, so that all are trained, run, timed, exported
    and compared by the same code. To write one, inherit and define ``adapt`` and ``predict``.

    Examples of a task come in any order, classes have any number of examples, and masked examples
    have no effect. The labels determine the number of ways of a task. Only methods that document it
    read `Tasks.hidden` or `Tasks.classes`.
    """

    base: nn.Module
    """The network whose parameters ``adapt`` returns."""

    loss_per_task: TaskLoss = staticmethod(loss_per_task)
    """Outputs and targets to one loss per task. Default: cross-entropy for labels, mean squared
    error for floats."""

    trained: ClassVar[bool] = True
    """True if ``fit`` changes the method; False if it works on each task alone."""

    inner_loop: ClassVar[bool] = False
    """True if ``adapt`` takes gradient steps and the method is trained through them."""

    ways: int | None = None
    """Number of classes that every task must have, for a head with a fixed number of rows; None:
    any number."""

    @abstractmethod
    def adapt(self, support: Support) -> Params:
        """Parameters of ``base`` for each task, from its support set."""

    @abstractmethod
    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run ``base`` with each task's parameters on inputs, (tasks, batch, *event)."""

    def condition(self, support: Support) -> Tensor | None:
        """Representation of each task as vectors, e.g. for a map of tasks; None by default."""
        return None

    def answer(self, tasks: Tasks) -> Tensor:
        """Adapt to the support sets and predict the queries; query targets are not read."""
        return self.predict(self.adapt(tasks.support), tasks.query_x)

    def forward(self, tasks: Tasks) -> Tensor:
        """Training loss of each task, (tasks,), as minimised by ``fit``."""
        return self.loss_of(self.answer(tasks), tasks.query)

    def loss_of(self, outputs: Tensor, examples: Examples) -> Tensor:
        """Loss of each task over its unmasked examples, (tasks,)."""
        return loss_of_those_there(self.loss_per_task, outputs, examples.y, examples.mask)

    @staticmethod
    def ways_of(examples: Examples) -> int:
        """Number of ways of the tasks: one more than the largest label of an unmasked example."""
        return 1 + int(examples.y.masked_fill(~examples.mask, -1).max())

    def fit(self, source: TaskSource, options: TrainOptions, **how: Any) -> History:
        """Meta-train on tasks drawn from ``source``.

        Args:
            source: Source of the tasks.
            options: Steps, tasks per step, learning rate and so on.
            **how: Further arguments of `weightloom.training.train`: ``run``, ``resume``,
                ``fabric``, ``evaluate``, ``quiet``.

        Returns:
            The history of the training.
        """
        return train(self, source, None, options, **how)

    def blocks(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Blocks of alternating training: the base's own parameters, and all others."""
        own = {id(parameter) for parameter in self.base.parameters()}
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.parameters():
            if parameter.requires_grad:
                sides[id(parameter) not in own].append(parameter)
        return sides
