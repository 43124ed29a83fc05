"""What every few-shot method is: a support set in, parameters of a working network out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from weightloom.losses import TaskLoss, loss_per_task
from weightloom.params import Params
from weightloom.tasks import Tasks, TaskSource
from weightloom.training import History, TrainOptions, train


class Support(NamedTuple):
    """Data to adapt on, with a leading tasks axis; the fields are those of `Tasks`."""

    x: Tensor
    """Inputs, (tasks, shots, *event)."""
    y: Tensor
    """Targets, (tasks, shots, *out), or labels, (tasks, shots)."""
    mask: Tensor
    """True where a point is there, (tasks, shots)."""

    @classmethod
    def of(cls, tasks: Tasks) -> "Support":
        """Take the support set of some tasks, and nothing else of them."""
        return cls(tasks.support_x, tasks.support_y, tasks.support_mask)


class Learner(nn.Module, ABC):
    """A few-shot method: ``fit`` on many tasks, ``adapt`` to the support set of new ones, ``predict`` their queries.

    Every method, ours or a comparator, answers with parameters, so that all are trained, run, timed, exported and
    compared by the same code. To bring your own, inherit and write ``adapt`` and ``predict``.
    """

    base: nn.Module
    """The network whose parameters ``adapt`` returns."""

    loss_per_task: TaskLoss = staticmethod(loss_per_task)
    """Outputs and targets to one loss per task. By default cross-entropy for labels, squared error elsewhere."""

    trained: ClassVar[bool] = True
    """Whether ``fit`` changes it; False for what works on each task alone."""

    inner_loop: ClassVar[bool] = False
    """Whether ``adapt`` takes gradient steps through which the method is trained."""

    ways: int | None = None
    """How many classes a task must have, for methods whose head has a fixed number of rows; None for any."""

    @abstractmethod
    def adapt(self, support: Support) -> Params:
        """Return parameters of ``base`` for each task, from its support set."""

    @abstractmethod
    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run ``base`` with each task's parameters on inputs (tasks, batch, *event)."""

    def condition(self, support: Support) -> Tensor | None:
        """Return what the method knows of each task as vectors, to be drawn on a map; None if it has none."""
        return None

    def answer(self, tasks: Tasks) -> Tensor:
        """Adapt and predict; the query targets are not read."""
        return self.predict(self.adapt(Support.of(tasks)), tasks.query_x)

    def forward(self, tasks: Tasks) -> Tensor:
        """Return the loss of each task, (tasks,): what ``fit`` differentiates."""
        return self.loss_per_task(self.answer(tasks), tasks.query_y)

    def fit(self, source: TaskSource, options: TrainOptions, **how: Any) -> History:
        """Meta-train on tasks drawn from ``source``.

        Args:
            source: Where tasks are drawn from.
            options: Steps, tasks per step, learning rate and so on.
            **how: What `weightloom.training.train` takes: ``run``, ``resume``, ``fabric``, ``evaluate``, ``quiet``.
        """
        return train(self, source, None, options, **how)

    def blocks(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What alternating training trains in turn: the base network's own values, and all that is around it."""
        own = {id(parameter) for parameter in self.base.parameters()}
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.parameters():
            if parameter.requires_grad:
                sides[id(parameter) not in own].append(parameter)
        return sides
