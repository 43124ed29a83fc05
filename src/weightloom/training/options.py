"""How a model is trained: every option once, and what a model brings that is trained in turns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained."""

    steps: int
    """Optimiser steps in all."""
    tasks: int = 16
    """Tasks per step, over all processes."""
    outer_lr: float = 1e-3
    """Peak learning rate; it rises over ``warmup_steps``, then falls to zero along a cosine."""
    warmup_steps: int = 100
    """Steps until the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of matrices and kernels; vectors and numbers have none."""
    average: float = 0.0
    """Judge and keep a running average of the parameters, with this decay per step, as in 0.998; 0 keeps none."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; it is scaled down to this."""
    evaluate_every: int = 500
    """Steps between evaluations."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Everything random follows from it."""
    mode: Literal["joint", "alternating"] = "joint"
    """``"joint"``: every step trains everything. ``"alternating"``: the blocks of the model (`HasBlocks`) in turn."""
    block_steps: int = 20
    """Steps before it is the next block's turn."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return self.outer_lr * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@runtime_checkable
class HasBlocks(Protocol):
    """A model that can be trained in turns, such as the base's own values and what generates changes of them."""

    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        """Return the parameters of each block; one that is in none is trained in every step."""
        ...
