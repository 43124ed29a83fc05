"""Use of the condition: the loss with a task's own condition, another task's, and the mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.diagnostics.table import Tabled
from weightloom.errors import ConfigError, ShapeError
from weightloom.runs.record import summary_over_seeds


@dataclass(frozen=True)
class Arm:
    """Mean of a loss over tasks, and half the width of its 95 % interval by Student's t."""

    mean: float
    ci95: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.ci95:.2g}"


@dataclass(frozen=True)
class ConditionUse(Tabled):
    """Loss with right conditions and with wrong ones; printed as a table and a sentence."""

    right: Arm
    """Each task with its own condition."""
    shuffled: Arm
    """Each task with the condition of another."""
    averaged: Arm
    """Every task with the mean of all conditions."""
    cost_of_shuffling: Arm
    """Shuffled less right, task by task."""
    cost_of_averaging: Arm
    """Averaged less right, task by task."""
    tasks: int

    @property
    def used(self) -> bool:
        """True if another task's condition is worse: the interval of the cost is above zero."""
        return self.cost_of_shuffling.mean > self.cost_of_shuffling.ci95

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        cost = self.cost_of_shuffling
        if self.used:
            return f"The condition is used: with another task's the loss rises by {cost}."
        if cost.mean < -cost.ci95:
            return (
                f"The condition misleads: with another task's the loss falls by "
                f"{Arm(-cost.mean, cost.ci95)}. "
                "Are conditions and targets in the same order?"
            )
        return f"No use of the condition is seen: with another task's the loss changes by {cost}."

    def cells(self) -> list[Sequence[str]]:
        """Return the rows of the table, its heading first."""
        arms = [("right", self.right), ("shuffled", self.shuffled), ("averaged", self.averaged)]
        rows: list[Sequence[str]] = [
            ("condition", f"loss over {self.tasks} tasks"),
            *((name, str(arm)) for name, arm in arms),
        ]
        return rows


@torch.no_grad()
def condition_use(
    hyper: nn.Module,
    base: nn.Module,
    condition: Float[Tensor, " tasks *features"],
    x: Tensor | tuple[Tensor, ...],
    loss_per_task: Callable[[Any], Float[Tensor, " tasks"]],
    shuffles: int = 4,
    generator: torch.Generator | None = None,
) -> ConditionUse:
    """Compare the loss with right conditions, shuffled conditions, and their mean.

    Each shuffle sends every condition to another task, none to its own. Arms are compared task by
    task, so tasks that are hard in all of them do not blur the difference.

    Args:
        hyper: The hypernetwork.
        base: The base network. Both run in their current mode: call ``eval()`` first if they have
            dropout.
        condition: A row per task, two tasks or more, the more the narrower the intervals.
        x: Inputs per task, (tasks, batch, *event), or a tuple of them.
        loss_per_task: The base's outputs to one loss per task, as in
            ``lambda y: mse_per_task(y, query_y)``.
        shuffles: Number of shuffles that are averaged.
        generator: Draws the shuffles. Default: the same ones every time.

    Raises:
        ShapeError: For fewer than two tasks, or the loss is not one number per task.
        ConfigError: If ``shuffles`` is below 1.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)  # ignores it at first
        >>> x, loss = torch.randn(8, 5, 3), lambda y: y.square().mean((1, 2))
        >>> condition_use(hyper, hyper.base, torch.randn(8, 4), x, loss).used
        False
    """
    tasks = len(condition)
    if tasks < 2:
        raise ShapeError(
            f"`condition` holds {tasks} task. A shuffle gives each task the condition of another. "
            "Pass two or more."
        )
    if shuffles < 1:
        raise ConfigError(
            f"`shuffles={shuffles}` is below 1. The loss is compared with that of shuffled "
            "conditions. Pass 1 or more."
        )
    generator = generator or torch.Generator().manual_seed(0)
    inputs = x if isinstance(x, tuple) else (x,)

    def losses(its: Tensor) -> Tensor:
        found = loss_per_task(apply_per_task(base, hyper(its), *inputs))
        if found.shape != (tasks,):
            raise ShapeError(
                f"`loss_per_task` gave {tuple(found.shape)} for {tasks} tasks. Tasks are compared "
                f"one by one. Return one number per task, ({tasks},), as `mse_per_task` does."
            )
        return found.double().cpu()

    right = losses(condition)
    orders = [none_stays(tasks, generator).to(condition.device) for _ in range(shuffles)]
    shuffled = torch.stack([losses(condition[order]) for order in orders]).mean(0)
    averaged = losses(condition.mean(0, keepdim=True).expand_as(condition))
    return ConditionUse(
        arm_of(right),
        arm_of(shuffled),
        arm_of(averaged),
        arm_of(shuffled - right),
        arm_of(averaged - right),
        tasks,
    )


def arm_of(values: Tensor) -> Arm:
    """Mean of a loss over tasks, (tasks,), and its interval."""
    over_tasks = summary_over_seeds(values.tolist())
    return Arm(over_tasks["mean"], over_tasks["ci95"])


def none_stays(tasks: int, generator: torch.Generator) -> Tensor:
    """Return an order in which no task keeps its place: a random ring, moved on by one."""
    ring = torch.randperm(tasks, generator=generator)
    order = torch.empty_like(ring)
    order[ring] = ring.roll(1)
    return order
