"""Numbers that a base reads from its rows while tasks are folded into the batch.

Each task has an answer of its own.

A base that asks whether a mask is full, say, goes one way or the other, task by task. Folded, all
tasks go one way. That is right where all answer alike; or where the two ways are one program, but
for a mask of attention that does nothing to those who would have gone without. Else tasks are run
in groups that answer alike.

In:   functions that a base calls.
Out:  what it read, task by task; whether two ways through a base are one program.
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
"""Reads at which tasks may go another way than they would: which way that is, and whether its mask
is causal."""


class TasksDifferError(BatchingError):
    """Tasks of one run answer a question of the base differently.

    Args:
        read: Which one it was, counted from 0.
        answers: Of each task.
    """

    def __init__(self, read: int, answers: Tensor) -> None:
        super().__init__("Tasks go different ways through the base.")
        self.read, self.answers = read, answers


class Answers:
    """What a base reads in one folded run.

    Args:
        tasks: How many tasks are folded, the rows of each together.
        harmless: Reads at which tasks may differ.
        forced: The answer to give at one read, whatever the tasks say.
    """

    def __init__(
        self, tasks: int, harmless: Harmless, forced: tuple[int, bool] | None = None
    ) -> None:
        self.tasks, self.harmless, self.forced = tasks, harmless, forced
        self.path: list[Any] = []
        """All that was read."""
        self._odd: dict[bool, Tensor] = {}
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._neutral: dict[int, Tensor] = {}
        self._rows = 0
        self._read: tuple[int, Tensor] = (0, torch.empty(0))

    def start(self, inputs: Sequence[Tensor]) -> None:
        """Say what enters the base."""
        self._rows = len(inputs[0]) if inputs else 0

    def knows(self, value: Tensor) -> bool:
        """Whether a value is one that each task has its own of."""
        return id(value) in self._found

    @no_type_check
    def result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function for all rows."""
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
                self._neutral.clear()  # masks are looked at again, for these tasks too
                self._odd[kind[1]] = odd | self._odd[kind[1]] if kind[1] in self._odd else odd
        self.path.append(value)
        return value

    def _check_mask(self, mask: Any) -> None:
        """Make sure that a mask does nothing to tasks that would have gone without."""
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
    """While active, the little of `WatchRows` that a base needs of which the rest is proved.

    What it reads.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    def start(self, inputs: Sequence[Tensor], generated: Any, named: Any) -> "Answering":
        """Say what enters the base."""
        self.answers.start(inputs)
        return self

    def finish(self, outputs: Any) -> None:
        """Nothing is left to be said."""

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; look at what is read."""
        if func in CONCERNED:
            return self.answers.result(func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)


class Program:
    """What a run computes, apart from the masks of attention: by what every tensor is made of."""

    def __init__(self) -> None:
        self.masks: list[tuple[Any, bool]] = []
        """Of every attention: what its mask is made of, None without one; and whether it is
        causal."""
        self.known = True
        """False if something is done that cannot be followed, as a change in place."""
        self._made: dict[int, Any] = {}
        self._alive: list[Any] = []

    def start(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> None:
        """Say what enters."""
        self._made = {id(value): ("named", name) for name, value in named.items()}
        self._made |= {id(x): ("input", number) for number, x in enumerate(inputs)}

    @no_type_check
    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note a call."""
        name = getattr(func, "__name__", str(func))
        if (
            (name.endswith("_") and not name.endswith("__"))
            or name in ("__setitem__", "__set__")
            or "out" in kwargs
        ):
            self.known = False
        if func is F.scaled_dot_product_attention:
            mask = argument(args, kwargs, 3, ["attn_mask"], None)
            causal = bool(argument(args, kwargs, 5, ["is_causal"], False))
            self.masks.append((None if mask is None else self.of(mask), causal))
            args = (*args[:3], *args[4:5])
            kwargs = {
                key: its for key, its in kwargs.items() if key not in ("attn_mask", "is_causal")
            }
        several = result if isinstance(result, tuple | list) else [result]
        made = None
        for number, one in enumerate(several):
            if isinstance(one, Tensor):
                made = made or hash((id(func), self._of_all(args), self._of_all(kwargs)))
                self._made[id(one)] = hash((made, number))
                self._alive.append(one)

    def of(self, value: Tensor) -> Any:
        """What a tensor is made of."""
        return self._made.get(id(value), ("own", id(value)))

    def _of_all(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self.of(tree)
        if isinstance(tree, tuple | list):
            return tuple([self._of_all(one) for one in tree])
        if isinstance(tree, dict):
            return tuple([(key, self._of_all(one)) for key, one in sorted(tree.items())])
        return repr(tree)
