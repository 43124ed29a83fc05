"""Batches of an adversarial training: real samples, their conditions, noise, and the penalty.

In:   a draw of real samples.
Out:  a source of batches for `weightloom.training.train`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError

RealDraw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Function of a step's number and a generator, to conditions, (tasks, condition_dim), and real
samples of each, (tasks, count, *shape)."""


class AdversarialBatch(NamedTuple):
    """Real samples of several conditions, and noise for as many generated ones."""

    condition: Tensor
    """Condition of each task, (tasks, condition_dim)."""
    real: Tensor
    """Real samples, (tasks, count, *shape)."""
    noise: Tensor
    """Noise, (tasks, count, noise_dim)."""
    penalty: float = 0.0
    """Weight of the gradient penalty in this step; 0 leaves it out."""


@dataclass(frozen=True)
class Penalty:
    """Weight γ of the gradient penalty over the rounds of a training.

    A round is a turn of each player. The penalty is computed in each ``every``-th round, with
    ``every`` times its weight. With ``end``, γ falls from ``start`` along a geometric series and
    reaches ``end`` after ``share`` of the rounds.

    Raises:
        ConfigError: If a number is out of its range, or ``end`` is given without ``rounds``.

    Example:
        >>> weights = Penalty(0.1, end=0.001, rounds=100, share=0.8)
        >>> [round(weights.at(number), 4) for number in (0, 40, 80, 99)]
        [0.1, 0.01, 0.001, 0.001]
    """

    start: float = 1.0
    """Weight in the first round; 0 for no penalty."""
    end: float | None = None
    """Weight at the end. Default: constant."""
    every: int = 1
    """Rounds from one penalty to the next."""
    rounds: int = 0
    """Rounds of the training; read with ``end`` only."""
    share: float = 0.8
    """Share of the rounds after which the weight is ``end``."""

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and not 0 < self.end <= self.start):
            raise ConfigError(
                f"`start={self.start}, end={self.end}` are no weights of a penalty. The weight is "
                "0 for none, or positive, and falls to a positive `end`. Pass for instance "
                "`Penalty(0.1, end=0.01, rounds=5000)`."
            )
        if self.every < 1 or not 0 < self.share <= 1 or (self.end is not None and self.rounds < 1):
            raise ConfigError(
                f"`every={self.every}, share={self.share}, rounds={self.rounds}` fit no schedule. "
                "`every` counts rounds from 1, `share` is above 0 and at most 1, and a falling "
                "weight needs the number of `rounds`. Pass them."
            )

    def at(self, number: int) -> float:
        """Weight in a round, counted from 0; 0 between the rounds with a penalty."""
        if number % self.every:
            return 0.0
        weight = self.start * self.every
        if self.end is None:
            return weight
        return weight * (self.end / self.start) ** min(number / (self.share * self.rounds), 1.0)


def adversarial_source(
    draw: RealDraw, noise_dim: int, penalty: Penalty | None = None, turns: int = 2
) -> Callable[[int, torch.Generator], AdversarialBatch]:
    """Source of batches, with normal noise and the weight of the penalty of each step.

    Args:
        draw: Draws conditions and real samples.
        noise_dim: Width of the noise.
        penalty: Weight of the gradient penalty by round. Default: `Penalty()`, weight 1.
        turns: Steps of a round: the discriminator's, and one of the generator.

    Example:
        >>> def draw(step, generator):
        ...     return torch.zeros(3, 0), torch.randn(3, 5, 2, generator=generator)
        >>> batch = adversarial_source(draw, noise_dim=4)(0, torch.Generator())
        >>> tuple(batch.noise.shape), batch.penalty
        ((3, 5, 4), 1.0)
    """
    weights = penalty or Penalty()

    def batch(step: int, generator: torch.Generator) -> AdversarialBatch:
        condition, real = draw(step, generator)
        noise = torch.randn(*real.shape[:2], noise_dim, generator=generator, dtype=real.dtype)
        return AdversarialBatch(condition, real, noise, weights.at(step // turns))

    return batch
