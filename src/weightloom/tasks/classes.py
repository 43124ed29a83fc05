"""Few-shot classification tasks, drawn many at once from a pool of labelled examples."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.errors import ConfigError, ShapeError
from weightloom.tasks.augment import Among, takes_share
from weightloom.tasks.tasks import ALL, Tasks, TaskSource

Augment = Callable[..., Tensor]
"""Random augmentation: called with images, (images, channels, height, width), and a generator, it
returns images of the same shape."""


@dataclass(frozen=True)
class ClassTasks(TaskSource):
    """N-way K-shot tasks: ``ways`` classes, with ``shots`` support and ``queries`` query examples.

    Labels are assigned to classes at random in every task, so they carry no meaning across tasks.
    Support and query examples are each ordered by label.

    Example:
        >>> pool = torch.rand(6, 20, 1, 8, 8)
        >>> source = ClassTasks(pool, torch.full((6,), 20), ways=3, shots=2, queries=5)
        >>> tasks = source.sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([4, 6, 1, 8, 8]), torch.Size([4, 15]))
    """

    examples: Tensor
    """Pool, (classes, examples of the largest class, *event): uint8 in 0 to 255, or float."""
    counts: Tensor
    """Number of examples per class, (classes,); entries of the pool behind it are never drawn."""
    ways: int
    """Classes per task."""
    shots: int
    """Support examples per class; with ``fewest_shots`` their maximum."""
    queries: int
    """Query examples per class."""
    augment: Augment | None = None
    """Random change of each drawn image. For meta-training only."""
    fewest_shots: int | None = None
    """Minimum shots per class: the number is drawn uniformly from here to ``shots``, per class and
    task, and the remaining examples are masked. None: always ``shots``."""
    groups: Tensor | None = None
    """Group of each class, (classes,): the classes of a task all come from one group. None: from
    any."""
    same_drawer: bool = False
    """Draw the same positions in the pool for all classes of a task. In Omniglot, position j is
    the drawing of person j."""
    named: Tensor | None = None
    """One more support example of each class, made of its name, (classes, *event), float:
    `ClassPool.named`. It comes after the shots of its class and is never masked. None: no
    more."""

    def __post_init__(self) -> None:
        classes, fewest = len(self.examples), int(self.counts.min())
        if self.ways > classes:
            raise ConfigError(
                f"`ways={self.ways}` but there are {classes} classes to draw from. "
                f"The classes of a task differ. Pass `ways` from 2 to {classes}."
            )
        if self.ways < 2:
            raise ConfigError(
                f"`ways={self.ways}`. A classification needs two classes. Pass `ways` from 2 to "
                f"{classes}."
            )
        if self.shots < 1 or self.queries < 1:
            raise ConfigError(
                f"`shots={self.shots}` and `queries={self.queries}`. A class needs at least one "
                "example to adapt on and one to be judged on. Pass numbers from 1."
            )
        if self.shots + self.queries > fewest:
            raise ConfigError(
                f"`shots={self.shots}` and `queries={self.queries}` take "
                f"{self.shots + self.queries} examples of a class, but the smallest has {fewest}. "
                f"Support and query never share an example. Pass numbers whose sum is at most "
                f"{fewest}."
            )
        if self.fewest_shots is not None and not 1 <= self.fewest_shots <= self.shots:
            raise ConfigError(
                f"`fewest_shots={self.fewest_shots}` with `shots={self.shots}`. The shots of a "
                f"class are drawn from the first to the second. Pass `fewest_shots` from 1 to "
                f"{self.shots}."
            )
        if self.groups is not None and self.ways > (
            largest := int(torch.bincount(self.groups).max())
        ):
            raise ConfigError(
                f"`ways={self.ways}` but the largest group has {largest} classes. The classes of a "
                f"task are all of one group. Pass `ways` from 2 to {largest}."
            )

        if self.named is not None and self.named.shape != (classes, *self.examples.shape[2:]):
            raise ShapeError(
                f"`named` has shape {tuple(self.named.shape)}, but the pool holds {classes} "
                f"classes of examples {tuple(self.examples.shape[2:])}. It holds one more example "
                "of each class, encoded as the others. Pass `with_names(pool).named`."
            )

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw classes, then examples of each, for all tasks at once.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return. The random numbers of all are drawn.
        """
        if not takes_share(self.augment) and share != ALL:
            return self.sample(tasks, generator).take(share)
        most = self.examples.shape[1]
        drawn = self._classes(tasks, generator)
        counts = (
            self.counts.min().expand(tasks, 1, 1)
            if self.same_drawer
            else self.counts[drawn][..., None]
        )
        order = torch.rand(tasks, 1 if self.same_drawer else self.ways, most, generator=generator)
        drawn = drawn[share]
        order = order[share].masked_fill(torch.arange(most) >= counts[share], -1.0)
        picked = order.topk(self.shots + self.queries).indices.expand(-1, self.ways, -1)
        values = self.examples[drawn[..., None], picked]
        values = values.float() / 255 if values.dtype == torch.uint8 else values
        if self.augment is not None:
            images = self.ways * values.shape[2]
            among = () if share == ALL else (Among.tasks(tasks, share, images),)
            changed = self.augment(values.flatten(0, 2), generator, *among)
            values = changed.unflatten(0, values.shape[:3])
        labels = torch.arange(self.ways)[:, None].expand(len(values), self.ways, -1)
        support, query = values[:, :, : self.shots], values[:, :, self.shots :]
        mask = torch.ones(len(values), self.ways, self.shots, dtype=torch.bool)
        if self.fewest_shots is not None:
            kept = torch.randint(
                self.fewest_shots, self.shots + 1, (tasks, self.ways, 1), generator=generator
            )
            mask = torch.arange(self.shots) < kept[share]
        if self.named is not None:
            support = torch.cat([support, self.named[drawn][:, :, None].to(support)], dim=2)
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        return Tasks.of(
            support.flatten(1, 2),
            labels.expand(-1, -1, support.shape[2]).flatten(1),
            query.flatten(1, 2),
            labels.expand(-1, -1, self.queries).flatten(1),
            support_mask=mask.flatten(1),
            classes=drawn,
        )

    def _classes(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Draw the classes of each task, (tasks, ways); with groups, first a large enough group."""
        classes = len(self.examples)
        order = torch.rand(tasks, classes, generator=generator)
        if self.groups is not None:
            large = (torch.bincount(self.groups) >= self.ways).nonzero()[:, 0]
            group = large[torch.randint(len(large), (tasks,), generator=generator)]
            order = order.masked_fill(self.groups != group[:, None], -1.0)
        return order.topk(self.ways).indices
