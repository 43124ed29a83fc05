"""How a model is trained: every option once, and what a model brings that is trained in turns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import nn

from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import MOST_OF_ALL

Schedule = Literal["cosine", "constant"]
Mode = Literal["joint", "alternating"]
KINDS: dict[object, tuple[type, str]] = {
    bool: (bool, "truth value"),
    int: (Integral, "whole number"),
    int | None: (Integral, "whole number"),
    float: (Real, "number"),
}
"""Types of options, the values that fit, and their name in messages."""


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained.

    Raises:
        ConfigError: If an option is out of its range, or the rate would not be reached within the
            run.
    """

    steps: int
    """Optimiser steps in all, over all turns."""
    tasks: int = 16
    """Tasks per step, over all processes."""
    outer_lr: float = 1e-3
    """Peak learning rate; it rises over ``warmup_steps``, then falls to zero along a cosine."""
    warmup_steps: int | None = None
    """Steps until the peak. Default: 100, and in a run of 100 steps or fewer a tenth of them."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of matrices and kernels; vectors and numbers have none."""
    average: float = 0.0
    """Judge and keep a running average of the parameters, with this decay per step, as in 0.998; 0
    keeps none."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; it is scaled down to this."""
    evaluate_every: int = 500
    """Steps between evaluations."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Everything random follows from it."""
    mode: Mode = "joint"
    """``"joint"``: every step trains everything. ``"alternating"``: the blocks of the model
    (`HasBlocks`) in turn."""
    block_steps: int = 20
    """Steps before it is the next block's turn."""
    schedule: Schedule = "cosine"
    """``"cosine"``: the rate falls to zero along a cosine. ``"constant"``: it stays at its peak."""
    average_buffers: bool = False
    """Average real buffers too, as the statistics of batch normalisation; else they are those of
    the last step."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_kind(field.name, getattr(self, field.name), field.type)
        check_counts(
            "",
            steps=self.steps,
            tasks=self.tasks,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
            block_steps=self.block_steps,
        )
        check_settings(
            "", self.outer_lr, self.warmup_steps, self.weight_decay, self.clip_norm, self.schedule
        )
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"`mode={self.mode!r}` is unknown. {nearest(str(self.mode), get_args(Mode))}"
            )
        if not 0 <= self.average < 1:
            raise ConfigError(
                f"`average={self.average}` is no decay. It is the share of the running average "
                "that a step leaves, from 0, which keeps no average, to below 1. Pass 0, or for "
                "instance 0.998."
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"`seed={self.seed}` is out of range. It is joined with the number of a step to 64 "
                "bits. Pass a seed from 0 to 4,294,967,295."
            )
        if (
            self.warmup_steps is not None
            and self.warmup_steps > 1
            and self.warmup_steps >= self.steps
        ):
            raise ConfigError(
                f"`warmup_steps={self.warmup_steps}` of {self.steps} steps. The rate would reach "
                f"its peak when the run is over. Pass at most "
                f"`warmup_steps={max(self.steps - 1, 0)}`, or leave it out for "
                f"{self._usual_warmup()}."
            )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0."""
        warmup_steps = self._usual_warmup() if self.warmup_steps is None else self.warmup_steps
        warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
        if self.schedule == "constant":
            return self.outer_lr * warmup
        return self.outer_lr * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _usual_warmup(self) -> int:
        return 100 if self.steps > 100 else self.steps // 10


@runtime_checkable
class HasBlocks(Protocol):
    """A model that can be trained in turns, such as the base's own values and what generates changes of them."""

    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        """Return the parameters of each block; one that is in none is trained in every step."""
        ...


def check_kind(name: str, value: object, kind: object) -> None:
    """Raise a `ConfigError` unless a value is of the type of its option.

    Args:
        name: The option.
        value: Its value.
        kind: Type of the option; those that are neither numbers nor truth values are passed over.
    """
    if kind not in KINDS or (value is None and kind == int | None):
        return
    wanted, words = KINDS[kind]
    if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
        raise ConfigError(
            f"`{name}={value!r}` is of type {type(value).__name__}. It is a {words}. Pass one."
        )


def check_counts(owner: str, **counts: int) -> None:
    """Raise a `ConfigError` unless every count is 1 or more.

    Args:
        owner: Whose options they are, to end a phrase, as in ``" of turn `critic`"``.
        **counts: The counts by the names of their options.
    """
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(
                f"`{name}={count}`{owner} is below 1. It counts what a run needs. Pass 1 or more."
            )
        if count > MOST_OF_ALL:
            raise ConfigError(
                f"`{name}={count:,}`{owner} is more than any machine could do. It is at most "
                f"{MOST_OF_ALL:,}. "
                "Pass fewer."
            )


def check_settings(
    owner: str,
    outer_lr: float | None,
    warmup_steps: int | None,
    weight_decay: float | None,
    clip_norm: float | None,
    schedule: str | None,
) -> None:
    """Raise a `ConfigError` unless settings of an optimiser are in their ranges.

    None stands for a default.

    Args:
        owner: Whose settings they are, as in `check_counts`.
        outer_lr: Peak learning rate.
        warmup_steps: Steps until the peak.
        weight_decay: Decoupled weight decay.
        clip_norm: Largest norm of the gradient.
        schedule: The course of the rate after its peak.
    """
    if outer_lr is not None and not 0 < outer_lr < math.inf:
        raise ConfigError(
            f"`outer_lr={outer_lr}`{owner} is no learning rate. Steps are as long as it says, so 0 "
            "trains nothing. Pass a positive number, as in 1e-3."
        )
    if clip_norm is not None and not clip_norm > 0:
        raise ConfigError(
            f"`clip_norm={clip_norm}`{owner} leaves no gradient. The gradient is scaled down to "
            "this norm. Pass a positive number; `math.inf` clips nothing."
        )
    if weight_decay is not None and not 0 <= weight_decay < math.inf:
        raise ConfigError(
            f"`weight_decay={weight_decay}`{owner} is no decay. A step takes this share, times the "
            "rate, off every matrix. Pass 0 or a positive number."
        )
    if warmup_steps is not None and warmup_steps < 0:
        raise ConfigError(
            f"`warmup_steps={warmup_steps}`{owner} is below 0. It counts the steps until the rate "
            "is at its peak. Pass 0 for none."
        )
    if schedule is not None and schedule not in get_args(Schedule):
        raise ConfigError(
            f"`schedule={schedule!r}`{owner} is unknown. It is the course of the rate after its "
            f"peak. {nearest(schedule, get_args(Schedule))}"
        )
