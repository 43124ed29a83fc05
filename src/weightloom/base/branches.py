"""Branches on tensor values: the answers that a base reads while tasks are folded into the batch.

Example: a base branches on whether a mask is full. Run alone, each task takes its own branch;
folded, all tasks take one. Folding is right where all tasks give the same answer, or where the two
branches are the same program except for an attention mask that leaves the other tasks unchanged.
Otherwise tasks with equal answers are run together, group by group.

In:   functions that a base calls.
Out:  the answers read, for each task; a description of the program, to compare two branches by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightloom.base.row_rules import READ, argument
from weightloom.errors import BatchingError
from weightloom.replica.hot import no_type_check

REDUCED = {torch.all, Tensor.all, torch.any, Tensor.any}
CONCERNED = {*REDUCED, *READ, F.scaled_dot_product_attention}

Harmless = dict[int, tuple[bool, bool]]
"""Reads, by number from 0, whose answer may be forced for all tasks.

Value: the answer to force, and True if the mask used then must equal a causal one for the other
tasks (False: a mask that hides no position)."""


class TasksDifferError(BatchingError):
    """Different answers of the tasks of one folded run to one read of the base.

    Args:
        read: Number of the read, from 0.
        answers: Answer of each task, boolean, ``(tasks,)``.
    """

    def __init__(self, read: int, answers: Tensor) -> None:
        super().__init__("Tasks take different branches in the base.")
        self.read, self.answers = read, answers


class Answers:
    """Answers that a base reads from tensors in one folded run.

    Args:
        tasks: Number of folded tasks; the rows of one task are adjacent.
        harmless: Reads at which tasks may differ.
        forced: Number of one read and the answer to give there, in place of the true one.
    """

    def __init__(
        self, tasks: int, harmless: Harmless, forced: tuple[int, bool] | None = None
    ) -> None:
        self.tasks, self.harmless, self.forced = tasks, harmless, forced
        self.path: list[Any] = []
        """Values read so far, in order."""
        self._odd: dict[bool, Tensor] = {}
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._neutral: dict[int, Tensor] = {}
        self._rows = 0
        self._read: tuple[int, Tensor] = (0, torch.empty(0))

    def start(self, inputs: Sequence[Tensor]) -> None:
        """Set the number of rows, from the inputs of the base."""
        self._rows = len(inputs[0]) if inputs else 0

    def knows(self, value: Tensor) -> bool:
        """Return True for a reduction over all rows whose answer is known for each task."""
        return id(value) in self._found

    @no_type_check
    def result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function on all rows, and record or force the answers read.

        Raises:
            TasksDifferError: If tasks give different answers, and folding them is not proved right.
            BatchingError: If a value other than a bool, int or float is read.
        """
        if func in REDUCED:
            result = func(*args, **kwargs)
            x = args[0] if args else kwargs["input"]
            if result.ndim == 0 and x.ndim and len(x) == self._rows and type(x) is Tensor:
                with torch.no_grad():
                    self._found[id(result)] = result, func(x.reshape(self.tasks, -1), 1)
            return result
        if func in READ:
            return self._answer(func, args, kwargs)
        if func is F.scaled_dot_product_attention and self._odd:
            self._check_mask(argument(args, kwargs, 3, ["attn_mask"], None))
        return func(*args, **kwargs)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = func(*args, **kwargs)
        if type(value) not in (bool, int, float):
            raise BatchingError(f"The base reads a {type(value).__name__} from a tensor.")
        read, found = len(self.path), self._found.get(id(args[0]))
        if found is not None:
            answers = found[1]
            if self.forced is not None and self.forced[0] == read:
                value = type(value)(self.forced[1])
            elif bool(answers.any()) != bool(answers.all()):
                kind = self.harmless.get(read)
                self._read = read, answers
                if kind is None or kind[0] != bool(value):
                    raise TasksDifferError(read, answers)
                odd = answers != kind[0]
                self._neutral.clear()  # masks are checked again, for these tasks too
                self._odd[kind[1]] = odd | self._odd[kind[1]] if kind[1] in self._odd else odd
        self.path.append(value)
        return value

    def _check_mask(self, mask: Any) -> None:
        """Raise unless a mask changes nothing for tasks that alone would run without it."""
        if not isinstance(mask, Tensor) or id(mask) in self._neutral:
            return
        for causal, odd in self._odd.items():
            its = (
                mask
                if mask.ndim < 4 or len(mask) != self._rows
                else mask.view(self.tasks, -1, *mask.shape[1:])[odd]
            )
            if mask.dtype != torch.bool:
                its = its == 0
            if causal:
                expected = torch.ones(its.shape[-2:], dtype=torch.bool, device=its.device).tril()
                its = its == expected
            if not bool(its.all()):
                raise TasksDifferError(*self._read)
        self._neutral[id(mask)] = mask


class Answering(TorchFunctionMode):
    """While active, check only the answers that a base reads; its other operations are proved."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    def start(self, inputs: Sequence[Tensor], generated: Any, named: Any) -> "Answering":
        """Take the inputs of the base; the other arguments serve `WatchRows.start` only."""
        self.answers.start(inputs)
        return self

    def finish(self, outputs: Any) -> None:
        """Do no check of the outputs."""

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, through `Answers.result` if it reads, reduces or attends."""
        if func in CONCERNED:
            return self.answers.result(func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)


class Program:
    """Program of one run: for every tensor, a hash of its origin, attention masks left out."""

    def __init__(self) -> None:
        self.masks: list[tuple[Any, bool]] = []
        """Each attention call: the origin of its mask, or None; and its ``is_causal`` argument."""
        self.known = True
        """False once an operation cannot be followed, such as a change in place."""
        self._made: dict[int, Any] = {}
        self._alive: list[Any] = []

    def start(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> None:
        """Set the origins of inputs and of tensors with a name."""
        self._made = {id(value): ("named", name) for name, value in named.items()}
        self._made |= {id(x): ("input", number) for number, x in enumerate(inputs)}

    @no_type_check
    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Record a call and the origin of each tensor in its result."""
        if _writes(func, kwargs):
            self.known = False
        if func is F.scaled_dot_product_attention:
            args, kwargs = self._without_mask(args, kwargs)
        several = result if isinstance(result, tuple | list) else [result]
        made = None
        for number, one in enumerate(several):
            if isinstance(one, Tensor):
                made = made or hash((id(func), self._of_all(args), self._of_all(kwargs)))
                self._made[id(one)] = hash((made, number))
                self._alive.append(one)

    @no_type_check
    def _without_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Record the mask of an attention call; return its arguments without it."""
        mask = argument(args, kwargs, 3, ["attn_mask"], None)
        causal = bool(argument(args, kwargs, 5, ["is_causal"], False))
        self.masks.append((None if mask is None else self.of(mask), causal))
        rest = {key: its for key, its in kwargs.items() if key not in ("attn_mask", "is_causal")}
        return (*args[:3], *args[4:5]), rest

    def of(self, value: Tensor) -> Any:
        """Return the origin of a tensor: a name, an input number, a hash of a call, or its id."""
        return self._made.get(id(value), ("own", id(value)))

    def _of_all(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self.of(tree)
        if isinstance(tree, tuple | list):
            return tuple([self._of_all(one) for one in tree])
        if isinstance(tree, dict):
            return tuple([(key, self._of_all(one)) for key, one in sorted(tree.items())])
        return repr(tree)


def _writes(func: Any, kwargs: dict[str, Any]) -> bool:
    """Return True if a function writes to one of its arguments."""
    name = getattr(func, "__name__", str(func))
    if name.endswith("_") and not name.endswith("__"):
        return True
    return name in ("__setitem__", "__set__") or "out" in kwargs
