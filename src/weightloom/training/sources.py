"""Batches by the number of a step.

Of tasks that are drawn, of a function, or of anything that can be gone through.
"""

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
"""The number of a step, from 0, and a generator that was seeded for it, to the batch of that
step."""

Source = TaskSource | Draw | Iterable[Any]
"""Where batches come from: a `TaskSource`, a function of step and generator, or a list, a
``DataLoader`` and the like.

A function and a `TaskSource` are asked anew for each step, so a run that goes on just goes on. What
can only be gone through is gone through again from its start for the steps that were done, in the
same seeds; where it ends it begins anew. A `Draw` costs nothing to resume, and is the one to take
where reading the data again takes long.
"""

END = object()
"""Stands for a batch where there is none."""


class Around:
    """Draw what can be gone through, batch by batch, around and around.

    Args:
        source: A list, a ``DataLoader``, or anything else with ``__iter__``. An iterator has one
            round.
        share: The part of a batch that is for this process, as in `dealt`.
    """

    def __init__(self, source: Iterable[Any], share: slice = ALL) -> None:
        self.source, self.share = source, share
        self.batches: Iterator[Any] = iter(())
        self.drawn = 0

    def __call__(self, step: int, generator: torch.Generator) -> Any:
        """Return the next batch.

        Raises:
            ConfigError: If there is none.
        """
        batch = next(self.batches, END)
        if batch is END:
            self.batches = iter(self.source)
            batch = next(self.batches, END)
        if batch is END:
            raise ConfigError(
                f"`source` ended after {self.drawn} batches, and step {step + 1} needs another. An "
                "iterator has one round, and what is empty has none. Pass a list, a `DataLoader`, "
                "or a function of step and generator."
            )
        self.drawn += 1
        return batch if self.share == ALL else dealt(batch, self.share)


def check_source(source: Any, tasks: int, world: int, is_kept: bool) -> None:
    """Raise a `ConfigError` unless batches can be drawn from a source, and drawn again where a run can be resumed.

    Args:
        source: As passed.
        tasks: How many tasks a `TaskSource` draws.
        world: Processes in all.
        is_kept: The run has a folder, from which it could go on.
    """
    if hasattr(source, "sample") and tasks % world:
        raise ConfigError(
            f"`tasks={tasks}` cannot be dealt out over {world} processes. Every process takes the "
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
            "Pass what it goes through, such as a list or a `DataLoader`; a function of step and "
            "generator that returns a batch; or no `run`."
        )


def drawing(source: Any, tasks: int, share: slice) -> Draw:
    """Return what draws the batch of a step.

    Args:
        source: A `Source`.
        tasks: How many tasks a `TaskSource` draws.
        share: The part of a batch that is for this process, as in ``slice(rank, None, processes)``.
            Of a batch that is not of a `TaskSource` it is taken along the first axis of every
            tensor; single numbers are for all.
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
"""Steps between the generators' seeds of two runs whose seeds are neighbours."""


class Batches:
    """The batch of each step, from the source of its turn.

    Args:
        sources: A `Source` for each turn; turns may share one.
        whose: The number of the turn that a step belongs to.
        options: Those of the run.
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

    def at(self, step: int) -> Any:
        """Draw the batch of a step: by its seed alone, so that no generator's state needs to survive a kill.

        Every process draws in the same seed, and goes on in one of its own.
        """
        seed = (self.seed * APART + step) % (1 << 32)  # torch's generator reads 32 bits of a seed
        self.generator.manual_seed(seed)
        seed_chance(seed, self.device)
        batch = self.draws[self.whose(step)](step, self.generator)
        if self.rank:
            seed_chance(seed + (self.rank << 24), self.device)
        return batch

    def wind(self, steps: int) -> None:
        """Go through what can only be gone through, up to where it is after so many steps."""
        if any(isinstance(draw, Around) for draw in self.draws):
            for step in range(steps):
                if isinstance(self.draws[self.whose(step)], Around):
                    self.at(step)


def dealt(batch: Any, share: slice) -> Any:
    """Take the share of a process along the first axis of every tensor in a batch.

    Raises:
        ConfigError: If tensors disagree on that axis, or it cannot be dealt out evenly.

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
    """List where a batch holds NaN or infinity: fields and keys, written as in code."""
    leaves, _ = tree_flatten_with_path(batch)
    found = [
        path
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and not bool(leaf.isfinite().all())
    ]
    return [keystr(path).lstrip(".") or "the batch" for path in found]
