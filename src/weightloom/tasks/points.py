"""Regression tasks from a pool of measured points: tasks of unequal length, drawn in bulk."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.tasks.tasks import Tasks, TaskSource

MOST_SHUFFLED = 4_000_000
"""Points that are shuffled together."""


class PointPool(NamedTuple):
    """Points (x, y), those of a task side by side.

    Tasks may hold unequal numbers, and a long one makes none longer.

    Example:
        >>> pool = PointPool(torch.rand(21, 2), torch.rand(21, 1), torch.tensor([9, 5, 7]), tuple("abc"),
        ...                  torch.zeros(3, dtype=torch.long))
        >>> pool.take(torch.tensor([2, 0])).x.shape
        torch.Size([16, 2])
    """

    x: Tensor
    """Inputs, (points of all tasks, features), in the order of the tasks."""
    y: Tensor
    """Targets, (points of all tasks, out)."""
    counts: Tensor
    """How many points each task has, (tasks,), int64."""
    names: tuple[str, ...]
    """One per task, as in ``"rat_weight/7"``."""
    groups: Tensor
    """Which family a task is of, (tasks,), int64; all zero where there are none."""
    taken_of: int = 0
    """Points of the longest task of the pool that these were taken of; 0: they are all there
    were."""

    def take(self, tasks: Tensor) -> "PointPool":
        """Take some of the tasks, by number, (kept,)."""
        names = tuple(self.names[task] for task in tasks.tolist())
        counts = self.counts[tasks]
        before = self.starts[tasks] - (counts.cumsum(0) - counts)
        points = torch.arange(int(counts.sum())) + before.repeat_interleave(counts)
        return PointPool(
            self.x[points], self.y[points], counts, names, self.groups[tasks], self.longest
        )

    @property
    def longest(self) -> int:
        """Points of the longest task, those included that this pool was taken of.

        As many numbers shuffle a task.
        """
        return max(self.taken_of, int(self.counts.max()) if len(self.counts) else 0)

    @property
    def starts(self) -> Tensor:
        """Number of each task's first point, (tasks,)."""
        return self.counts.cumsum(0) - self.counts


@dataclass(frozen=True)
class Stretch:
    """Mirror, stretch and shift the axes of each task at random.

    More kinds of curves to train on than there are.

    x becomes ± a x + b and y becomes ± c y, the same for all points of a task, with log a and log c
    normal.
    """

    x: float = 0.25
    """Standard deviation of log a."""
    shift: float = 0.2
    """Standard deviation of b."""
    y: float = 0.5
    """Standard deviation of log c."""

    def __call__(self, tasks: Tasks, generator: torch.Generator) -> Tasks:
        """Change some tasks; what is masked stays zero."""
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
    """Tasks drawn from a pool: some points of each as support, queries from the points that are left.

    A group is drawn first, each as often, then a task in it: a large family counts no more than a
    small one. Where fewer points are left than ``queries``, they come again in turn, each as often
    up to one. Tasks that have no point left after the fewest shots are never drawn.

    Example:
        >>> pool = PointPool(torch.rand(21, 2), torch.rand(21, 1), torch.tensor([9, 5, 7]), tuple("abc"),
        ...                  torch.zeros(3, dtype=torch.long))
        >>> tasks = PointTasks(pool, shots=4, queries=6).sample(8, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([8, 4, 2]), torch.Size([8, 6, 1]))
    """

    pool: PointPool
    """Where tasks come from."""
    shots: int
    """Support points per task; with ``fewest_shots`` the most there can be."""
    queries: int = 12
    """Query points per task."""
    fewest_shots: int | None = None
    """Draw the shots of each task from this number to ``shots``, or to all of its points but one;
    mask the others."""
    centred: bool = False
    """Count targets from the mean of the task's own support targets: its level is not known before
    it is measured."""
    augment: Stretch | None = None
    """Changes each drawn task at random. For meta-training only."""

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
        """Numbers of the tasks that are long enough to be drawn."""
        return (self.pool.counts > (self.fewest_shots or self.shots)).nonzero()[:, 0]

    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw groups, tasks in them, then points of each, for all tasks at once."""
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
        """Shuffle the points of each task, some tasks at a time, and keep the first, (tasks, shots + queries or fewer).

        Args:
            counts: How many points each has, (tasks, 1).
            generator: Says how.
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
        """Draw a group for each task, each group as often, and a task in it; (tasks,)."""
        drawable = self.drawable
        drawable = drawable[self.pool.groups[drawable].argsort(stable=True)]
        _, sizes = self.pool.groups[drawable].unique_consecutive(return_counts=True)
        group = torch.randint(len(sizes), (tasks,), generator=generator)
        return drawable[(sizes.cumsum(0) - sizes)[group] + _below(sizes[group], generator)]


def _below(ends: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers from 0 to each of ``ends`` - 1, each as likely."""
    drawn = torch.rand(ends.shape, generator=generator, dtype=torch.float64)
    return (drawn * ends).long().clamp(max=ends - 1)
