"""Batches by the number of a step, from a task source, a function, or an iterable of batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from weightloom.errors import ConfigError
from weightloom.tasks import ALL, TaskSource, draw_share
from weightloom.training.options import TrainOptions
from weightloom.training.processes import Processes, seed_chance

Draw = Callable[[int, torch.Generator], Any]
"""Function of a step's number, from 0, and a generator seeded for the step, to its batch."""

Source = TaskSource | Draw | Iterable[Any]
"""Source of batches: a `TaskSource`, a function of step and generator, or an iterable of batches
such as a list or ``DataLoader``.

A function and a `TaskSource` are called for each step, so resuming costs nothing. An iterable is
repeated when it ends; resuming reads it again from its start, with the same seeds, up to the step
of the checkpoint. Prefer a function (`Draw`) where reading the data again takes long.
"""

END = object()
"""Marks the end of an iterator."""


class Around:
    """`Draw` over an iterable: its batches in order, repeated from the start when it ends.

    Args:
        source: A list, a ``DataLoader``, or another object with ``__iter__``. An iterator cannot
            be repeated.
        share: Part of a batch for this process, as in `dealt`.
    """

    def __init__(self, source: Iterable[Any], share: slice = ALL) -> None:
        self.source, self.share = source, share
        self.batches: Iterator[Any] = iter(())
        self.drawn = 0

    def __call__(self, step: int, generator: torch.Generator) -> Any:
        """Next batch; ``step`` is used in the message only, ``generator`` not at all.

        Raises:
            ConfigError: If the iterable is empty, or an iterator has ended.
        """
        batch = next(self.batches, END)
        if batch is END:
            self.batches = iter(self.source)
            batch = next(self.batches, END)
        if batch is END:
            raise ConfigError(
                f"`source` ended after {self.drawn} batches, and step {step + 1} needs another. An "
                "iterator can be read once, and an empty source has no batch. Pass a list, a "
                "`DataLoader`, or a function of step and generator."
            )
        self.drawn += 1
        return batch if self.share == ALL else dealt(batch, self.share)


def check_source(source: Any, tasks: int, world: int, is_kept: bool) -> None:
    """Check that batches can be drawn from a source, and drawn again if the run can be resumed.

    Args:
        source: A `Source`, not yet checked.
        tasks: Tasks per step from a `TaskSource`.
        world: Number of processes.
        is_kept: The run has a folder, from which it could be resumed.

    Raises:
        ConfigError: If ``tasks`` is no multiple of ``world``, ``source`` is of no known kind, or a
            run with a folder would read from an iterator.
    """
    if hasattr(source, "sample") and tasks % world:
        raise ConfigError(
            f"`tasks={tasks}` cannot be divided among {world} processes. Every process takes the "
            f"same number, so that the gradient is that of one process. Pass "
            f"`tasks={-(-tasks // world) * world}`."
        )
    if not (hasattr(source, "sample") or callable(source) or isinstance(source, Iterable)):
        raise ConfigError(
            f"`source` is a {type(source).__name__}. Batches are drawn from it, step by step. Pass "
            "a `TaskSource`, a function of step and generator that returns a batch, or a list or "
            "`DataLoader` of batches."
        )
    if is_kept and isinstance(source, Iterator):
        raise ConfigError(
            f"`source` is a {type(source).__name__}, an iterator, and `run` was given. A run that "
            "is resumed must draw the same batches again, and an iterator cannot be wound back. "
            "Pass the list or `DataLoader` that it iterates over; a function of step and "
            "generator that returns a batch; or no `run`."
        )


def drawing(source: Any, tasks: int, share: slice) -> Draw:
    """Turn a source into a `Draw` of this process's share of each batch.

    Args:
        source: A `Source`.
        tasks: Tasks per step from a `TaskSource`.
        share: Part of a batch for this process, as in ``slice(rank, None, processes)``. Batches of
            other sources are sliced along the first axis of every tensor; scalars go to all.
    """
    if hasattr(source, "sample"):
        draw = draw_share(source, share)
        return lambda step, generator: draw(tasks, generator)
    if not callable(source):
        return Around(source, share)
    if share == ALL:
        return source
    return lambda step, generator: dealt(source(step, generator), share)


APART = 0x9E3779B1
"""Distance between the step seeds of runs with consecutive seeds: their steps never overlap."""


class Batches:
    """The batch of each step, from the source of its turn.

    Args:
        sources: A `Source` per turn; turns may share one.
        whose: Maps the number of a step, from 0, to the number of its turn.
        options: Options of the run, for the seed and the tasks per step.
        processes: Devices and processes.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        whose: Callable[[int], int],
        options: TrainOptions,
        processes: Processes,
    ) -> None:
        rank, world = processes.global_rank, processes.world_size
        share = slice(rank, None, world) if world > 1 else ALL
        by_source = {id(source): drawing(source, options.tasks, share) for source in sources}
        self.draws = [by_source[id(source)] for source in sources]
        self.whose, self.seed, self.rank, self.device = whose, options.seed, rank, processes.device
        self.generator = torch.Generator()

    @property
    def can_repeat(self) -> bool:
        """True if the batch of any step can be drawn again: no source is an iterable."""
        return not any(isinstance(draw, Around) for draw in self.draws)

    def at(self, step: int) -> Any:
        """Draw the batch of a step, counted from 0, from a seed that depends only on run and step.

        No generator state needs to be kept in a checkpoint. Every process draws with the same seed
        and then seeds its default generators differently from the others, e.g. for dropout.
        """
        seed = (self.seed * APART + step) % (1 << 32)  # torch's generator reads 32 bits of a seed
        self.generator.manual_seed(seed)
        seed_chance(seed, self.device)
        batch = self.draws[self.whose(step)](step, self.generator)
        if self.rank:
            seed_chance(seed + (self.rank << 24), self.device)
        return batch

    def wind(self, steps: int) -> None:
        """Advance iterables from their start by ``steps`` steps; other sources have no position.

        An iterable that ends earlier starts again, as in training.
        """
        if any(isinstance(draw, Around) for draw in self.draws):
            for step in range(steps):
                if isinstance(self.draws[self.whose(step)], Around):
                    self.at(step)


def dealt(batch: Any, share: slice) -> Any:
    """Slice every tensor of a batch along its first axis, to the share of one process.

    Args:
        batch: Any tree; scalars and objects other than tensors are kept.
        share: Rows of this process; its step is the number of processes.

    Raises:
        ConfigError: If tensors disagree in length, or it is no multiple of the processes.

    Example:
        >>> dealt({"x": torch.arange(6), "scale": torch.tensor(2.0)}, slice(1, None, 2))
        {'x': tensor([1, 3, 5]), 'scale': tensor(2.)}
    """
    lengths = sorted(
        {len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
    )
    if len(lengths) > 1 or any(length % share.step for length in lengths):
        raise ConfigError(
            f"A batch holds tensors of {' and '.join(map(str, lengths))} rows, for {share.step} "
            "processes. Each takes the same number of rows along axis 0, so that the gradient is "
            f"that of one process. Pass batches whose tensors have one number of rows, a multiple "
            f"of {share.step}; a `DataLoader` takes `drop_last=True`."
        )
    return tree_map(
        lambda leaf: leaf[share] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch
    )


def spoilt(batch: Any) -> list[str]:
    """Paths of the tensors of a batch that hold NaN or infinity: fields and keys, as in code."""
    leaves, _ = tree_flatten_with_path(batch)
    found = [
        path
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and not bool(leaf.isfinite().all())
    ]
    return [keystr(path).lstrip(".") or "the batch" for path in found]
