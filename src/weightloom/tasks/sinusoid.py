"""Sinusoids of random amplitude and phase: few-shot regression tasks without a data set."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.tasks.tasks import ALL, Tasks, TaskSource


@dataclass(frozen=True)
class SinusoidTasks(TaskSource):
    """Sinusoids y = A sin(x - phase), with A from U(0.1, 5), phase from U(0, π), x from U(-5, 5).

    ``Tasks.hidden`` is A and phase, (tasks, 2).

    Example:
        >>> tasks = SinusoidTasks(shots=10).sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([4, 10, 1]), torch.Size([4, 50, 1]))

    Source:
        Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017), section 5.1.
    """

    shots: int = 10
    """Support points per task; with ``ragged`` their maximum."""
    queries: int = 50
    """Query points per task."""
    ragged: float = 0.0
    """Fraction of the tasks with a random number of shots, from 1 to ``shots``; the others of their
    points are masked."""

    def __post_init__(self) -> None:
        if self.shots < 1 or self.queries < 1:
            raise ConfigError(
                f"`shots={self.shots}` and `queries={self.queries}`. A task needs at least one "
                "point to adapt on and one to be judged on. Pass numbers from 1."
            )

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw sinusoids and points on them.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return. The random numbers of all are drawn.
        """
        amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, 1, generator=generator)
        phase = math.pi * torch.rand(tasks, 1, 1, generator=generator)
        x = 10 * torch.rand(tasks, self.shots + self.queries, 1, generator=generator) - 5
        amplitude, phase, x = amplitude[share], phase[share], x[share]
        y = self.curve(x, amplitude, phase)
        mask = torch.ones(tasks, self.shots, dtype=torch.bool)
        if self.ragged > 0:
            fewer = torch.rand(tasks, 1, generator=generator) < self.ragged
            kept = torch.randint(1, self.shots + 1, (tasks, 1), generator=generator)
            mask = ~fewer | (torch.arange(self.shots) < kept)
        mask = mask[share]
        hidden = torch.cat([amplitude, phase], dim=2)[:, 0]
        parts = x[:, : self.shots], y[:, : self.shots], x[:, self.shots :], y[:, self.shots :]
        return Tasks.of(*parts, support_mask=mask, hidden=hidden)

    @staticmethod
    def curve(x: Tensor, amplitude: Tensor, phase: Tensor) -> Tensor:
        """Return A sin(x - phase)."""
        return amplitude * torch.sin(x - phase)
