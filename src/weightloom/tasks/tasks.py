"""What a batch of tasks is, and what makes one."""

from abc import ABC, abstractmethod
from typing import NamedTuple

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
        """Draw ``tasks`` tasks; the same generator state gives the same tasks."""
