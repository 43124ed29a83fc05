"""What a batch of tasks is, and what makes one."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_only

from weightloom.errors import ShapeError


class Examples(NamedTuple):
    """Examples of several tasks, (tasks, rows).

    Inputs, what belongs to them, and which of them are there.

    Rows stand in any order, and a task may have as many of a class as it likes. `Examples.of`
    checks shapes.
    """

    x: Any
    """Inputs, (tasks, rows, *event): a tensor, or a tree of them, such as a dict of tokens and
    attention mask."""
    y: Any
    """Targets, (tasks, rows, *out), or labels, (tasks, rows), that count from 0 in every task; or a
    tree of them."""
    mask: Tensor
    """True where an example is there, (tasks, rows); what stands in the others has no effect."""

    @classmethod
    def of(cls, x: Any, y: Any, mask: Tensor | None = None) -> "Examples":
        """Put examples together, and check their shapes.

        Args:
            x: Inputs.
            y: Targets or labels.
            mask: True where an example is there; None: all are.

        Raises:
            ShapeError: If inputs, targets and mask disagree on the number of tasks or of rows.

        Example:
            >>> tokens = {"ids": torch.zeros(7, 10, 32, dtype=torch.long), "seen": torch.ones(7, 10, 32)}
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
                f"`mask` is {mask.dtype} of shape {tuple(mask.shape)}. It is true where an example "
                "is there, (tasks, rows). Pass `mask.bool()` with one entry for each example, or "
                "None where all are there."
            )
        for name, value in leaves:
            if value.shape[:2] != mask.shape:
                raise ShapeError(
                    f"`{name}` has shape {tuple(value.shape)}, but there are {mask.shape[0]} tasks "
                    f"of {mask.shape[1]} rows. Every tensor of a set of examples begins with "
                    "(tasks, rows), where tasks with fewer examples are filled up and masked. Pass "
                    f"`{name}` as ({mask.shape[0]}, {mask.shape[1]}, ...)."
                )
        return cls(x, y, mask)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Examples":
        """Apply a function to every tensor, the mask too."""
        return Examples(*tree_map_only(Tensor, function, tuple(self)))

    def take(self, index: slice | Tensor) -> "Examples":
        """Take some of the tasks, by a slice or a tensor of task numbers."""
        return self.map(lambda values: values[index])

    def rows(self, index: Tensor) -> "Examples":
        """Take rows of each task, in the order of their numbers (tasks, kept)."""
        task = torch.arange(len(index), device=index.device)[:, None]
        return self.map(lambda values: values[task, index])


class Tasks(NamedTuple):
    """Several tasks, each with examples to adapt on (support) and examples to be judged on (query).

    For classification ``shots`` below means all support images of a task, ``ways * shots``, and
    targets are labels.

    Example:
        >>> x, y = torch.randn(2, 7, 5, 3), torch.randn(2, 7, 5, 1)
        >>> tasks = Tasks.of(x[0], y[0], x[1], y[1])
        >>> tasks.support_x.shape, tasks.query.mask.shape
        (torch.Size([7, 5, 3]), torch.Size([7, 5]))
    """

    support: Examples
    """Examples to adapt on, (tasks, shots)."""
    query: Examples
    """Examples to be judged on, (tasks, queries)."""
    hidden: Any = None
    """Facts that made the task, (tasks, ...): amplitude and phase, pictures before a camera. Never
    known of a new task, and None where nobody knows: for reports, and for losses of meta-training
    that say so."""
    classes: Tensor | None = None
    """The class of the pool that each label of a task stands for, (tasks, ways): for reports, and
    for methods that learn to tell all training classes apart. None where tasks are not drawn from a
    pool of classes."""

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
        """Put tasks together, and check their shapes; without a mask all examples are there.

        Raises:
            ShapeError: If parts disagree on the number of tasks, or on that of rows within support
                or query.
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
        """Inputs to adapt on, (tasks, shots, *event)."""
        return self.support.x

    @property
    def support_y(self) -> Any:
        """Their targets, (tasks, shots, *out), or labels, (tasks, shots)."""
        return self.support.y

    @property
    def support_mask(self) -> Tensor:
        """True where a support point is there, (tasks, shots)."""
        return self.support.mask

    @property
    def query_x(self) -> Any:
        """Inputs to be judged on, (tasks, queries, *event)."""
        return self.query.x

    @property
    def query_y(self) -> Any:
        """Their targets or labels."""
        return self.query.y

    @property
    def query_mask(self) -> Tensor:
        """True where a query point is there, (tasks, queries)."""
        return self.query.mask

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tasks":
        """Apply a function to every tensor of every field."""
        others = tree_map_only(Tensor, function, (self.hidden, self.classes))
        return Tasks(self.support.map(function), self.query.map(function), *others)

    def take(self, index: slice | Tensor) -> "Tasks":
        """Take some of the tasks, by a slice or a tensor of task numbers.

        Every field keeps its tasks axis.
        """
        return self.map(lambda values: values[index])

    def to(self, device: torch.device | str) -> "Tasks":
        """Move every field to a device."""
        return self.map(lambda values: values.to(device))


def _tensors(name: str, tree: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a tree, each by what to type for it."""
    leaves, _ = tree_flatten_with_path(tree)
    return [(name + keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


class Skipped(NamedTuple):
    """Something of a user's own data that was left out."""

    what: str
    """The path of a file or folder, or the name of a task."""
    why: str
    """In a few words."""


MOST_TOLD = 100


def told(skipped: Sequence[Skipped]) -> list[str]:
    """Say what was left out, a line each, and of more than a hundred how many others there are.

    Example:
        >>> told([Skipped("birds/jay/notes.txt", "no picture in a known format")])
        ['skipped birds/jay/notes.txt: no picture in a known format']
    """
    lines = [f"skipped {one.what[:200]}: {one.why[:400]}" for one in skipped[:MOST_TOLD]]
    others = len(skipped) - MOST_TOLD
    return [*lines, f"skipped {others:,} others, for such reasons"] if others > 0 else lines


class TaskSource(ABC):
    """Something that tasks can be drawn from."""

    @abstractmethod
    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw ``tasks`` tasks; the same generator state gives the same tasks.

        A source may take ``share``, a slice, by keyword: it then returns
        ``sample(tasks, generator).take(share)`` and leaves undone what only the others need.
        Processes that share the tasks of a step ask for it.
        """


ALL = slice(None)
"""The share of one process alone."""


def draw_share(source: TaskSource, share: slice) -> Callable[[int, torch.Generator], Tasks]:
    """Return what draws a share of the tasks that a source draws.

    One that takes no ``share`` draws all of them.

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
