"""The plan of a call: its engine, the reason, and all other decisions on how it runs."""

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
    """Engine of a call, and the reason for it."""

    engine: Engine
    reason: str
    batch_major: bool = False
    """True if the aligned engine folds to (batch, tasks), the layout for grouped convolutions;
    False for (tasks, batch)."""
    at_once: int | None = None
    """Tasks that run at once, so that convolved tensors stay in the cache; None for all tasks."""
    convolved: tuple[float, float] | None = None
    """Mean and maximum, over convolutions with generated kernels, of the bytes of the input or
    output (the larger one), divided by the bytes of the base's first input."""

    def of_size(self, call: Call) -> "Choice":
        """Adapt the choice to the input sizes of a call, on a CPU.

        Returns:
            The loop if convolutions with generated kernels are large; this choice with ``at_once``
            set if all tasks at once would not fit into the cache; else this choice unchanged.
        """
        x = call.rows[0] if call.rows else None
        if self.convolved is None or x is None or x.device.type != "cpu" or not x.numel():
            return self
        mean, most = (its * x.numel() * x.element_size() for its in self.convolved)
        tasks = len(x)
        if mean > TURN_BYTES * tasks:
            return Choice(
                "loop",
                "convolutions with generated kernels are large, so tasks are run in turn",
            )
        pieces = math.ceil(most / GROUPED_BYTES)
        return replace(self, at_once=math.ceil(tasks / pieces)) if pieces > 1 else self

    def __str__(self) -> str:
        pieces = f", {self.at_once} at a time" if self.at_once is not None else ""
        return f"{self.engine}: {self.reason}{pieces}"


@dataclass(frozen=True)
class Plan:
    """Findings about a call; valid for every call of the same kind (see `plan_cache`)."""

    choice: Choice
    places: Places = ()
    """Places of generated parameters and buffers in the base."""
    layers: list[Layer] | None = None
    """Layers of a plain `torch.nn.Sequential`, for `run_sequential`; None for any other base."""
    proven: bool = True
    """False if the base may change its behaviour unseen: then every aligned run is watched."""
    dense: frozenset[str] = frozenset()
    """Parameters that the base changes in place, and that are copied for it."""
    buffers: tuple[str, ...] = ()
    """Buffers that the base writes, and that are therefore copied for each task."""
    sizes: bool = True
    """True if the plan is valid for these input sizes only."""
    reads: bool = False
    """True if the base reads numbers and runs in the loop, where every run is guarded."""
    ways: Ways | None = None
    """Control-flow paths along which a base that reads numbers can still be folded."""
    kernels: frozenset[str] = frozenset()
    """Parameters held as factors that the loop builds for all tasks at once, before it starts."""
    is_free: bool = False
    """True if the other engines give equal results."""

    def safe(self, choice: Choice, tasks: int) -> dict[str, Choice]:
        """Choices with equal results, by name, for `Tuning` to time; ``choice`` comes first.

        Args:
            choice: Choice made by counting bytes.
            tasks: Number of tasks that the aligned engine may run in 2, 4 or 8 pieces.
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
