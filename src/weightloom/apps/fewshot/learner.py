"""What every few-shot method is: a support set in, parameters of a working network out."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from weightloom.params import Params
from weightloom.tasks import Tasks


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
    """A few-shot method. ``forward`` adapts to the support set and predicts the query set, all of it differentiable.

    Every method, ours or a comparator, answers with parameters of its ``base``, so that all are run, timed, exported
    and compared by the same code.
    """

    base: nn.Module

    @abstractmethod
    def adapt(self, support: Support) -> Params:
        """Return parameters of ``base`` for each task, from its support set."""

    @abstractmethod
    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run ``base`` with each task's parameters on inputs (tasks, batch, *event)."""

    def condition(self, support: Support) -> Tensor | None:
        """Return what the method knows of each task as vectors, to be drawn on a map; None if it has none."""
        return None

    def forward(self, tasks: Tasks) -> Tensor:
        """Adapt and predict; the query targets are not read."""
        return self.predict(self.adapt(Support.of(tasks)), tasks.query_x)
