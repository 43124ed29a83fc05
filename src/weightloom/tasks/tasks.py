"""Batches of tasks, and the interface of their sources."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_only

from weightloom.errors import ConfigError, ShapeError
from weightloom.texts import html_table


class Examples(NamedTuple):
    """Inputs, targets and mask of the examples of several tasks, (tasks, rows).

    Rows are in any order, and the number of rows per class may differ. `Examples.of` checks shapes.
    """

    x: Any
    """Inputs, (tasks, rows, *event): a tensor, or a tree of them, such as a dict of tokens and
    attention mask."""
    y: Any
    """Targets, (tasks, rows, *out), or labels, (tasks, rows), that count from 0 in every task; or a
    tree of them."""
    mask: Tensor
    """False for padding, (tasks, rows); the values of masked rows have no effect."""

    @classmethod
    def of(cls, x: Any, y: Any, mask: Tensor | None = None) -> "Examples":
        """Build examples after a check of their shapes.

        Args:
            x: Inputs, (tasks, rows, *event), or a tree of them.
            y: Targets, (tasks, rows, *out), or labels, (tasks, rows), or a tree of them.
            mask: False for padding, (tasks, rows), bool. None: no row is padding.

        Raises:
            ShapeError: If inputs, targets and mask disagree on the number of tasks or rows, or
                neither contains a tensor.

        Example:
            >>> ids = torch.zeros(7, 10, 32, dtype=torch.long)
            >>> tokens = {"ids": ids, "seen": torch.ones(7, 10, 32)}
            >>> Examples.of(tokens, torch.zeros(7, 10, dtype=torch.long)).mask.shape
            torch.Size([7, 10])
        """
        leaves = [*_tensors("x", x), *_tensors("y", y)]
        if mask is None:
            if not leaves:
                raise ShapeError(
                    f"`x` is a {type(x).__name__} and `y` a {type(y).__name__}, without a tensor. "
                    "Inputs and targets are tensors (tasks, rows, ...), or trees of them. Pass "
                    "`torch.as_tensor(x)`."
                )
            _, first = leaves[0]
            mask = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ShapeError(
                f"`mask` is {mask.dtype} of shape {tuple(mask.shape)}. It is false for padding, "
                "(tasks, rows). Pass `mask.bool()` with one entry for each example, or None if no "
                "row is padding."
            )
        for name, value in leaves:
            if value.shape[:2] != mask.shape:
                raise ShapeError(
                    f"`{name}` has shape {tuple(value.shape)}, but there are {mask.shape[0]} tasks "
                    f"of {mask.shape[1]} rows. Every tensor of a set of examples begins with "
                    "(tasks, rows), where tasks with fewer examples are padded and masked. Pass "
                    f"`{name}` as ({mask.shape[0]}, {mask.shape[1]}, ...)."
                )
        return cls(x, y, mask)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Examples":
        """Apply a function to every tensor, including the mask."""
        return Examples(*tree_map_only(Tensor, function, tuple(self)))

    def take(self, index: slice | Tensor) -> "Examples":
        """Select tasks by a slice or a tensor of task numbers."""
        return self.map(lambda values: values[index])

    def rows(self, index: Tensor) -> "Examples":
        """Select rows of each task by their numbers, (tasks, kept), in this order."""
        task = torch.arange(len(index), device=index.device)[:, None]
        return self.map(lambda values: values[task, index])


class Tasks(NamedTuple):
    """Batch of tasks: a support set to adapt on, and a query set to evaluate on, for each task.

    For classification ``shots`` below means all support examples of a task, ``ways * shots``, and
    targets are labels. `Tasks.of` checks shapes.

    Example:
        >>> x, y = torch.randn(2, 7, 5, 3), torch.randn(2, 7, 5, 1)
        >>> tasks = Tasks.of(x[0], y[0], x[1], y[1])
        >>> tasks.support_x.shape, tasks.query.mask.shape
        (torch.Size([7, 5, 3]), torch.Size([7, 5]))
    """

    support: Examples
    """Support examples, to adapt on, (tasks, shots)."""
    query: Examples
    """Query examples, to evaluate on, (tasks, queries)."""
    hidden: Any = None
    """Hidden variables of each task, (tasks, ...), e.g. amplitude and phase, or pictures before a
    camera; None if unknown. Not available at test time: only for reports, and for meta-training
    losses that document their use."""
    classes: Tensor | None = None
    """Class in the pool of each label of a task, (tasks, ways): for reports, for `names`, and for
    methods that train a classifier of all training classes. None if tasks are not drawn from a pool
    of classes."""

    def _repr_html_(self) -> str:
        parts = {name: getattr(self, name) for name in ("support", "query", "hidden", "classes")}
        named = [
            (name, str(tuple(value.shape)), str(value.dtype).removeprefix("torch."))
            for part, its in parts.items()
            for name, value in _tensors(part, _by_field(its))
        ]
        return html_table([("tensor", "shape", "dtype"), *named], f"{len(self.support.mask)} tasks")

    @classmethod
    def of(
        cls,
        support_x: Any,
        support_y: Any,
        query_x: Any,
        query_y: Any,
        *,
        support_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        hidden: Any = None,
        classes: Tensor | None = None,
    ) -> "Tasks":
        """Build a batch of tasks after a check of its shapes.

        Args:
            support_x: Support inputs, (tasks, shots, *event), or a tree of them.
            support_y: Support targets, (tasks, shots, *out), or labels, (tasks, shots).
            query_x: Query inputs, (tasks, queries, *event), or a tree of them.
            query_y: Query targets, (tasks, queries, *out), or labels, (tasks, queries).
            support_mask: False for padding, (tasks, shots), bool. None: no row is padding.
            query_mask: False for padding, (tasks, queries), bool. None: no row is padding.
            hidden: Hidden variables, (tasks, ...), or a tree of them.
            classes: Class in the pool of each label, (tasks, ways).

        Raises:
            ShapeError: If the parts disagree on the number of tasks, or the support or query parts
                on the number of rows.
        """
        support = Examples.of(support_x, support_y, support_mask)
        query = Examples.of(query_x, query_y, query_mask)
        count = len(support.mask)
        others = {
            "query_x": query.mask,
            **dict(_tensors("hidden", hidden)),
            **dict(_tensors("classes", classes)),
        }
        for name, value in others.items():
            if value.shape[:1] != (count,):
                raise ShapeError(
                    f"`{name}` has shape {tuple(value.shape)}, but `support_x` holds {count} "
                    f"tasks. Every part of some tasks has one entry for each of them, on axis 0. "
                    f"Pass `{name}` as ({count}, ...)."
                )
        return cls(support, query, hidden, classes)

    @property
    def support_x(self) -> Any:
        """Support inputs, (tasks, shots, *event)."""
        return self.support.x

    @property
    def support_y(self) -> Any:
        """Support targets, (tasks, shots, *out), or labels, (tasks, shots)."""
        return self.support.y

    @property
    def support_mask(self) -> Tensor:
        """False for padding of the support, (tasks, shots)."""
        return self.support.mask

    @property
    def query_x(self) -> Any:
        """Query inputs, (tasks, queries, *event)."""
        return self.query.x

    @property
    def query_y(self) -> Any:
        """Query targets, (tasks, queries, *out), or labels, (tasks, queries)."""
        return self.query.y

    @property
    def query_mask(self) -> Tensor:
        """False for padding of the query, (tasks, queries)."""
        return self.query.mask

    def names(self, of_classes: Sequence[str]) -> list[list[str]]:
        """Look up the names of the classes of each task, in the order of its labels.

        Tasks hold numbers only; names and descriptions stay in the pool.

        Args:
            of_classes: Name of each class of the pool, as `ClassPool.names`.

        Raises:
            ConfigError: If `Tasks.classes` is None, or holds a class without a name.

        Example:
            >>> x, y = torch.randn(1, 2, 3), torch.tensor([[0, 1]])
            >>> Tasks.of(x, y, x, y, classes=torch.tensor([[2, 0]])).names(["ant", "bee", "cow"])
            [['cow', 'ant']]
        """
        most = -1 if self.classes is None else int(self.classes.max())
        if self.classes is None or most >= len(of_classes):
            found = f"holds a class {most}" if self.classes is not None else "is None"
            raise ConfigError(
                f"`Tasks.classes` {found}, and {len(of_classes)} names were given. It holds the "
                "number in the pool of the class of each label, (tasks, ways), as `ClassTasks` "
                "draws it. Pass the names of that pool."
            )
        return [[of_classes[number] for number in row] for row in self.classes.tolist()]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tasks":
        """Apply a function to every tensor of every field."""
        others = tree_map_only(Tensor, function, (self.hidden, self.classes))
        return Tasks(self.support.map(function), self.query.map(function), *others)

    def take(self, index: slice | Tensor) -> "Tasks":
        """Select tasks by a slice or a tensor of task numbers; the tasks axis stays."""
        return self.map(lambda values: values[index])

    def to(self, device: torch.device | str) -> "Tasks":
        """Move all tensors to a device."""
        return self.map(lambda values: values.to(device))


def _tensors(name: str, tree: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors of a tree, each with its expression, as in ``x['ids']``."""
    leaves, _ = tree_flatten_with_path(tree)
    return [(name + keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _by_field(part: Any) -> Any:
    return part._asdict() if isinstance(part, Examples) else part


class Skipped(NamedTuple):
    """File, folder or task of a user's data that was left out."""

    what: str
    """Path of the file or folder, or name of the task."""
    why: str
    """Reason, as a phrase."""


MOST_TOLD = 100
"""Maximum number of lines of `told`, without the last."""


def told(skipped: Sequence[Skipped]) -> list[str]:
    """Return a line for each of the first 100 that were skipped, and one with the number of others.

    Example:
        >>> told([Skipped("birds/jay/notes.txt", "no picture in a known format")])
        ['skipped birds/jay/notes.txt: no picture in a known format']
    """
    lines = [f"skipped {one.what[:200]}: {one.why[:400]}" for one in skipped[:MOST_TOLD]]
    others = len(skipped) - MOST_TOLD
    return [*lines, f"skipped {others:,} others, for such reasons"] if others > 0 else lines


class TaskSource(ABC):
    """Interface of task distributions: the method `sample` draws a batch of tasks."""

    @abstractmethod
    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw a batch of tasks; the same generator state gives the same tasks.

        A source may accept a keyword ``share``, a slice. It then returns
        ``sample(tasks, generator).take(share)`` without building the other tasks. Processes that
        share the tasks of a training step use it.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
        """


ALL = slice(None)
"""Share of a single process: all tasks."""


def draw_share(source: TaskSource, share: slice) -> Callable[[int, torch.Generator], Tasks]:
    """Return a function that draws a share of the tasks that ``source`` draws.

    If ``source.sample`` does not accept ``share``, all tasks are drawn and a share is returned.

    Args:
        source: Source of tasks.
        share: Slice of each batch, e.g. ``slice(rank, None, processes)``.

    Returns:
        A function of the number of tasks in the whole batch, and a generator.

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
