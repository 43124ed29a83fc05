"""Options of a training, their checks, and the interface of a model with blocks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import nn

from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import MOST_OF_ALL

Schedule = Literal["cosine", "constant"]
Mode = Literal["joint", "alternating"]
Optimiser = Literal["adamw", "sgd"]
KINDS: dict[object, tuple[type, str]] = {
    bool: (bool, "truth value"),
    int: (Integral, "whole number"),
    int | None: (Integral, "whole number"),
    float: (Real, "number"),
}
"""Annotation of an option, to the type of its values and the name of that type in messages."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training: steps, learning rate, evaluation, checkpoints, seed.

    Raises:
        ConfigError: If an option is out of its range, or the warm-up is longer than the run.
    """

    steps: int
    """Optimiser steps of the run, over all turns."""
    tasks: int = 16
    """Tasks per step, over all processes."""
    outer_lr: float = 1e-3
    """Peak learning rate; it rises over ``warmup_steps``, then falls to zero along a cosine."""
    warmup_steps: int | None = None
    """Steps until the peak. Default: 100, or a tenth of a run of 100 steps or fewer."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels, decoupled in AdamW; vectors and scalars have none."""
    average: float = 0.0
    """Decay per step of a running average of the parameters, which is evaluated and kept instead of
    the last ones, as in 0.998. 0: no average."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    evaluate_every: int = 500
    """Steps between evaluations."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of all random numbers of the run, from 0 to 2**32 - 1."""
    mode: Mode = "joint"
    """``"joint"``: every step trains all parameters. ``"alternating"``: the blocks of the model
    (`HasBlocks`) in turn."""
    block_steps: int = 20
    """Consecutive steps per block in ``mode="alternating"``."""
    schedule: Schedule = "cosine"
    """Learning rate after its peak. ``"cosine"``: falls to zero along a cosine. ``"constant"``:
    stays at the peak."""
    optimiser: Optimiser = "adamw"
    """``"adamw"``, or ``"sgd"`` with Nesterov's momentum of 0.9."""
    average_buffers: bool = False
    """Also average floating-point buffers. Default: measure the statistics of batch normalisation
    again for the averaged parameters, on the batches of the last 10 steps, and keep other buffers
    of the last step. Batches of an iterable cannot be drawn again: all buffers are then kept."""

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
        if self.optimiser not in get_args(Optimiser):
            raise ConfigError(
                f"`optimiser={self.optimiser!r}` is unknown. It moves the parameters. "
                f"{nearest(str(self.optimiser), get_args(Optimiser))}"
            )
        if not 0 <= self.average < 1:
            raise ConfigError(
                f"`average={self.average}` is no decay. It is the share of the running average "
                "kept per step, from 0, for no average, to below 1. Pass 0, or for instance 0.998."
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
                f"its peak only at the end of the run. Pass at most "
                f"`warmup_steps={max(self.steps - 1, 0)}`, or leave it out for "
                f"{self._usual_warmup()}."
            )

    def learning_rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        warmup_steps = self._usual_warmup() if self.warmup_steps is None else self.warmup_steps
        warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
        if self.schedule == "constant":
            return self.outer_lr * warmup
        return self.outer_lr * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _usual_warmup(self) -> int:
        return 100 if self.steps > 100 else self.steps // 10


@runtime_checkable
class HasBlocks(Protocol):
    """Interface of a model for ``mode="alternating"``: its parameters in blocks trained in turn."""

    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters of each block; a parameter outside all blocks is trained in every step."""
        ...


def check_kind(name: str, value: object, kind: object) -> None:
    """Check the type of an option's value.

    Args:
        name: Name of the option.
        value: Value of the option.
        kind: Annotation of the option; only those in `KINDS` are checked.

    Raises:
        ConfigError: If the value is of another type.
    """
    if kind not in KINDS or (value is None and kind == int | None):
        return
    wanted, words = KINDS[kind]
    if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
        raise ConfigError(
            f"`{name}={value!r}` is of type {type(value).__name__}. It is a {words}. Pass one."
        )


def check_counts(owner: str, **counts: int) -> None:
    """Check that every count is from 1 to `weightloom.runs.options.MOST_OF_ALL`.

    Args:
        owner: Owner of the options in messages, as in ``" of turn `critic`"``; may be empty.
        **counts: The counts by the names of their options.

    Raises:
        ConfigError: If a count is out of this range.
    """
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(
                f"`{name}={count}`{owner} is below 1. A run needs at least one. Pass 1 or more."
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
    """Check the settings of an optimiser; None stands for a default.

    Args:
        owner: Owner of the settings in messages, as in `check_counts`.
        outer_lr: Peak learning rate.
        warmup_steps: Steps until the peak.
        weight_decay: Decoupled weight decay.
        clip_norm: Maximum norm of the gradient.
        schedule: Learning rate after its peak.

    Raises:
        ConfigError: If a setting is out of its range.
    """
    numbers = {
        "outer_lr": outer_lr,
        "clip_norm": clip_norm,
        "weight_decay": weight_decay,
        "warmup_steps": warmup_steps,
    }
    for name, value in numbers.items():
        fits, refusal = _RANGES[name]
        if value is not None and not fits(value):
            raise ConfigError(f"`{name}={value}`{owner} {refusal}")
    if schedule is not None and schedule not in get_args(Schedule):
        raise ConfigError(
            f"`schedule={schedule!r}`{owner} is unknown. It is the course of the rate after its "
            f"peak. {nearest(schedule, get_args(Schedule))}"
        )


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "outer_lr": (
        lambda rate: 0 < rate < math.inf,
        "is no learning rate. Steps are proportional to it, so 0 trains no parameter. Pass a "
        "positive number, as in 1e-3.",
    ),
    "clip_norm": (
        lambda norm: norm > 0,
        "leaves no gradient. The gradient is scaled down to this norm. Pass a positive number; "
        "`math.inf` never clips.",
    ),
    "weight_decay": (
        lambda decay: 0 <= decay < math.inf,
        "is no decay. A step takes this share, times the rate, off every matrix. Pass 0 or a "
        "positive number.",
    ),
    "warmup_steps": (
        lambda steps: steps >= 0,
        "is below 0. It counts the steps until the rate is at its peak. Pass 0 for none.",
    ),
}
"""Settings of an optimiser: the condition that a value meets, and the message if it does not."""
