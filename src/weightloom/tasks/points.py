"""Regression tasks from a pool of measured points, with unequal numbers of points per task."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.tasks.tasks import Tasks, TaskSource

MOST_SHUFFLED = 4_000_000
"""Maximum number of points shuffled in one tensor, which limits memory."""


class PointPool(NamedTuple):
    """Points (x, y) of several tasks, concatenated task by task without padding.

    Example:
        >>> x, y, counts = torch.rand(21, 2), torch.rand(21, 1), torch.tensor([9, 5, 7])
        >>> pool = PointPool(x, y, counts, ("a", "b", "c"), torch.zeros(3, dtype=torch.long))
        >>> pool.take(torch.tensor([2, 0])).x.shape
        torch.Size([16, 2])
    """

    x: Tensor
    """Inputs, (points of all tasks, features), in the order of the tasks."""
    y: Tensor
    """Targets, (points of all tasks, out)."""
    counts: Tensor
    """Number of points per task, (tasks,), int64."""
    names: tuple[str, ...]
    """Name of each task, e.g. ``"rat_weight/7"``."""
    groups: Tensor
    """Family of each task, (tasks,), int64; all zero for tasks without families."""
    taken_of: int = 0
    """Points of the longest task of the pool that this one was taken from; 0 for a whole pool."""

    def take(self, tasks: Tensor) -> "PointPool":
        """Return a pool of the given tasks, (kept,), by number and in this order."""
        names = tuple(self.names[task] for task in tasks.tolist())
        counts = self.counts[tasks]
        before = self.starts[tasks] - (counts.cumsum(0) - counts)
        points = torch.arange(int(counts.sum())) + before.repeat_interleave(counts)
        return PointPool(
            self.x[points], self.y[points], counts, names, self.groups[tasks], self.longest
        )

    def shared_grid(self) -> tuple[Tensor, Tensor] | None:
        """Return positions and values if all tasks have one point at each of the same positions.

        Positions are (positions, features), values (tasks, positions, out). None for other tasks.

        Example:
            >>> x, names, groups = torch.tensor([[1.0], [2.0], [2.0], [1.0]]), ("a", "b"), [0, 0]
            >>> pool = PointPool(x, 3 * x, torch.tensor([2, 2]), names, torch.tensor(groups))
            >>> [part.tolist() for part in pool.shared_grid()]
            [[[1.0], [2.0]], [[[3.0], [6.0]], [[3.0], [6.0]]]]
        """
        positions, place = self.x.unique(dim=0, return_inverse=True)
        tasks, points = len(self.counts), len(positions)
        task = torch.arange(tasks).repeat_interleave(self.counts)
        cells = task * points + place
        if tasks * points != len(cells) or len(cells.unique()) != len(cells):
            return None
        return positions, self.y[cells.argsort()].unflatten(0, (tasks, points))

    @property
    def longest(self) -> int:
        """Points of the longest task in this pool, or in the pool it was taken from.

        `PointTasks` draws this many random numbers per task, so that a task is shuffled alike
        in the whole pool and in a part of it.
        """
        return max(self.taken_of, int(self.counts.max()) if len(self.counts) else 0)

    @property
    def starts(self) -> Tensor:
        """Index of the first point of each task, (tasks,)."""
        return self.counts.cumsum(0) - self.counts


@dataclass(frozen=True)
class Stretch:
    """Random augmentation of regression tasks that mirrors, stretches and shifts the axes.

    x becomes ± a x + b and y becomes ± c y, with the same a, b, c and signs for all points of a
    task. log a, log c and b are normal with mean 0.
    """

    x: float = 0.25
    """Standard deviation of log a."""
    shift: float = 0.2
    """Standard deviation of b."""
    y: float = 0.5
    """Standard deviation of log c."""

    def __call__(self, tasks: Tasks, generator: torch.Generator) -> Tasks:
        """Return the changed tasks; masked support points become zero."""
        size = (len(tasks.support_x), 1, 1)
        signs = 2.0 * torch.randint(2, (2, *size), generator=generator) - 1
        a, c, b = torch.randn(3, *size, generator=generator).unbind()
        x_unit, y_unit = signs[0] * (self.x * a).exp(), signs[1] * (self.y * c).exp()
        there = tasks.support_mask[..., None]
        support_x = (tasks.support_x * x_unit + self.shift * b) * there
        support = tasks.support._replace(x=support_x, y=tasks.support_y * y_unit)
        query = tasks.query._replace(
            x=tasks.query_x * x_unit + self.shift * b, y=tasks.query_y * y_unit
        )
        return tasks._replace(support=support, query=query)


@dataclass(frozen=True)
class PointTasks(TaskSource):
    """Regression tasks from a `PointPool`, with disjoint support and query points.

    A group is drawn first, uniformly, then a task in it, so large and small families have equal
    weight. If fewer than ``queries`` points remain after the support, they are repeated cyclically.
    Tasks without a point left after the minimum number of shots are never drawn. ``Tasks.hidden``
    is the number and the group of the task, (tasks, 2).

    Example:
        >>> x, y, counts = torch.rand(21, 2), torch.rand(21, 1), torch.tensor([9, 5, 7])
        >>> pool = PointPool(x, y, counts, ("a", "b", "c"), torch.zeros(3, dtype=torch.long))
        >>> tasks = PointTasks(pool, shots=4, queries=6).sample(8, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([8, 4, 2]), torch.Size([8, 6, 1]))
    """

    pool: PointPool
    """Pool that tasks are drawn from."""
    shots: int
    """Support points per task; with ``fewest_shots`` their maximum."""
    queries: int = 12
    """Query points per task."""
    fewest_shots: int | None = None
    """Minimum shots: the number is drawn uniformly per task, from here to ``shots`` or to one less
    than its points, and the remaining ones are masked. None: always ``shots``."""
    centred: bool = False
    """Subtract the mean of the task's support targets from all its targets."""
    augment: Stretch | None = None
    """Random change of each drawn task. For meta-training only."""

    def __post_init__(self) -> None:
        if self.shots < 1 or self.queries < 1:
            raise ConfigError(
                f"`shots={self.shots}` and `queries={self.queries}`. A task needs at least one "
                "point to adapt on and one to be judged on. Pass numbers from 1."
            )
        if self.fewest_shots is not None and not 1 <= self.fewest_shots <= self.shots:
            raise ConfigError(
                f"`fewest_shots={self.fewest_shots}` with `shots={self.shots}`. The shots of a "
                f"task are drawn from the first to the second. Pass `fewest_shots` from 1 to "
                f"{self.shots}."
            )
        if not len(self.drawable):
            most = int(self.pool.counts.max()) if len(self.pool.counts) else 0
            raise ConfigError(
                f"`shots={self.shots}` but the longest task of the pool has {most} points. One "
                f"point at least is left to be judged on. Pass `shots` up to {most - 1}, or a "
                "`fewest_shots` so small."
            )

    @property
    def drawable(self) -> Tensor:
        """Numbers of the tasks with enough points to be drawn."""
        return (self.pool.counts > (self.fewest_shots or self.shots)).nonzero()[:, 0]

    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw groups, a task in each, then its points, for all tasks at once.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
        """
        chosen = self._choose(tasks, generator)
        counts, starts = self.pool.counts[chosen, None], self.pool.starts[chosen, None]
        shots = torch.full((tasks, 1), self.shots)
        if self.fewest_shots is not None:
            highest = (counts - 1).clamp(max=self.shots)
            shots = self.fewest_shots + _below(highest - self.fewest_shots + 1, generator)
        order = starts + self._order(counts, generator)
        mask = torch.arange(self.shots) < shots
        support = order.gather(1, torch.arange(self.shots).minimum(counts - 1))
        query = order.gather(1, shots + torch.arange(self.queries) % (counts - shots))
        support_y, query_y = self.pool.y[support], self.pool.y[query]
        kept = mask[..., None].to(support_y.dtype)
        level = (support_y * kept).sum(1, keepdim=True) / shots[..., None]
        level = level if self.centred else torch.zeros_like(level)
        drawn = Tasks.of(
            self.pool.x[support] * kept,
            (support_y - level) * kept,
            self.pool.x[query],
            query_y - level,
            support_mask=mask,
            hidden=torch.stack([chosen, self.pool.groups[chosen]], dim=1),
        )
        return drawn if self.augment is None else self.augment(drawn, generator)

    def _order(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Shuffle the points of each task; return the first, (tasks, up to shots + queries).

        Args:
            counts: Points per task, (tasks, 1).
            generator: Source of randomness.
        """
        most = self.pool.longest
        firsts = []
        for part in counts.split(max(1, MOST_SHUFFLED // most)):
            drawn = torch.rand(len(part), most, generator=generator).masked_fill(
                torch.arange(most) >= part, -1.0
            )
            firsts.append(drawn.argsort(1, descending=True)[:, : self.shots + self.queries].clone())
        return torch.cat(firsts)

    def _choose(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Draw a group per task, uniformly, and a task in it, (tasks,)."""
        drawable = self.drawable
        drawable = drawable[self.pool.groups[drawable].argsort(stable=True)]
        _, sizes = self.pool.groups[drawable].unique_consecutive(return_counts=True)
        group = torch.randint(len(sizes), (tasks,), generator=generator)
        return drawable[(sizes.cumsum(0) - sizes)[group] + _below(sizes[group], generator)]


def _below(ends: Tensor, generator: torch.Generator) -> Tensor:
    """Draw integers uniformly from 0 to each of ``ends`` - 1."""
    drawn = torch.rand(ends.shape, generator=generator, dtype=torch.float64)
    return (drawn * ends).long().clamp(max=ends - 1)
