"""The plan of a call: its engine, why, and everything else that decides how it runs."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from weightloom.base.branch_paths import Ways
from weightloom.base.call import Call
from weightloom.base.engines import Engine
from weightloom.base.sequential import Layer
from weightloom.forms.calls import GROUPED_BYTES, TURN_BYTES
from weightloom.replica.replica import Places

Statistics = Literal["task", "shared"]


@dataclass(frozen=True)
class Choice:
    """How a call is run, and why."""

    engine: Engine
    reason: str
    batch_major: bool = False
    """Whether the aligned engine folds so that the task changes from row to row, as grouped
    convolutions like it."""
    at_once: int | None = None
    """How many tasks are run at once, so that what is convolved stays in the cache; None means
    all."""
    convolved: tuple[float, float] | None = None
    """Bytes that convolutions with generated kernels read or write, over those of the first input:
    mean and most."""

    def of_size(self, call: Call) -> "Choice":
        """The choice for inputs of these sizes.

        So many tasks at once that what is convolved stays in the cache.
        """
        x = call.rows[0] if call.rows else None
        if self.convolved is None or x is None or x.device.type != "cpu" or not x.numel():
            return self
        mean, most = (its * x.numel() * x.element_size() for its in self.convolved)
        tasks = len(x)
        if mean > TURN_BYTES * tasks:
            return Choice(
                "loop",
                "what is convolved with generated kernels is large, so tasks are run in turn",
            )
        pieces = math.ceil(most / GROUPED_BYTES)
        return replace(self, at_once=math.ceil(tasks / pieces)) if pieces > 1 else self

    def __str__(self) -> str:
        pieces = f", {self.at_once} at a time" if self.at_once is not None else ""
        return f"{self.engine}: {self.reason}{pieces}"


@dataclass(frozen=True)
class Plan:
    """What was found out about a call, and holds for every call alike."""

    choice: Choice
    places: Places = ()
    layers: list[Layer] | None = None
    proven: bool = True
    """Whether what the base does cannot change unseen; else every aligned run is watched."""
    dense: frozenset[str] = frozenset()
    """Parameters that the base changes in place."""
    buffers: tuple[str, ...] = ()
    """Buffers that the base writes, which each task is given its own of."""
    sizes: bool = True
    """Whether it holds for these sizes only."""
    reads: bool = False
    """Whether the base reads numbers and runs in the loop: then it is guarded in every run."""
    ways: Ways | None = None
    """Where the base reads numbers and is folded all the same."""
    kernels: frozenset[str] = frozenset()
    """Parameters held as factors that are built for all tasks before they are run in turn."""
    is_free: bool = False
    """Whether other engines give the same."""

    def safe(self, choice: Choice, tasks: int) -> dict[str, Choice]:
        """Every choice that gives the same, the one that was counted the quickest first.

        Args:
            choice: The one that was counted.
            tasks: How many tasks there are to be run some at a time.
        """
        found = [choice]
        if self.choice.engine == "aligned":
            pieces = {
                None,
                *(math.ceil(tasks / 2**power) for power in range(1, 4) if tasks >= 2**power),
            }
            halves = (
                sorted(pieces, key=lambda size: -(size or tasks))
                if self.choice.convolved is not None
                else [None]
            )
            found += [replace(self.choice, at_once=size) for size in halves]
        if self.ways is None:
            found.append(Choice("vmap", "timed"))
        found.append(Choice("loop", "timed"))
        named: dict[str, Choice] = {}
        for its in found:
            name = its.engine if its.at_once is None else f"{its.engine}, {its.at_once} at a time"
            named.setdefault(name, its)
        return named
