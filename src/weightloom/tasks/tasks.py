"""What a batch of tasks is, and what makes one."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tasks(NamedTuple):
    """Several tasks, each with data to adapt on (support) and data to be judged on (query).

    For classification ``shots`` below means all support images of a task, ``ways * shots``, and targets are labels.
    """

    support_x: Tensor
    """Inputs to adapt on, (tasks, shots, *event)."""
    support_y: Tensor
    """Their targets, (tasks, shots, *out), or labels, (tasks, shots)."""
    support_mask: Tensor
    """True where a support point is there, (tasks, shots)."""
    query_x: Tensor
    """Inputs to be judged on, (tasks, queries, *event)."""
    query_y: Tensor
    """Their targets or labels."""

    hidden: Tensor
    """Facts that made the task, (tasks, ...): amplitude and phase, the classes drawn, pictures before a camera. Never
    known of a new task: for reports, and for losses of meta-training."""

    def take(self, index: slice | Tensor) -> "Tasks":
        """Take some of the tasks, by a slice or a tensor of task numbers; every field keeps its tasks axis."""
        return Tasks(*(field[index] for field in self))

    def to(self, device: torch.device | str) -> "Tasks":
        """Move every field to a device."""
        return Tasks(*(field.to(device) for field in self))


class Skipped(NamedTuple):
    """Something of a user's own data that was left out."""

    what: str
    """The path of a file or folder, or the name of a task."""
    why: str
    """In a few words."""


class TaskSource(ABC):
    """Something that tasks can be drawn from."""

    @abstractmethod
    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw ``tasks`` tasks; the same generator state gives the same tasks.

        A source may take ``share``, a slice, by keyword: it then returns ``sample(tasks, generator).take(share)`` and
        leaves undone what only the others need. Processes that share the tasks of a step ask for it.
        """


ALL = slice(None)
"""The share of one process alone."""


def draw_share(source: TaskSource, share: slice) -> Callable[[int, torch.Generator], Tasks]:
    """Return what draws a share of the tasks that a source draws; one that takes no ``share`` draws all of them.

    Args:
        source: Where tasks come from.
        share: Which of them, as in ``slice(rank, None, processes)``.

    Example:
        >>> from weightloom.tasks import SinusoidTasks
        >>> draw = draw_share(SinusoidTasks(shots=10), slice(1, None, 2))
        >>> draw(8, torch.Generator().manual_seed(0)).support_x.shape
        torch.Size([4, 10, 1])
    """
    if share == ALL:
        return source.sample
    if "share" not in inspect.signature(source.sample).parameters:
        return lambda tasks, generator: source.sample(tasks, generator).take(share)
    sharing: Any = source
    return lambda tasks, generator: sharing.sample(tasks, generator, share=share)
