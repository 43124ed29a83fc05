"""A pair that reads statistics of real and of generated samples as its condition.

In:   two players, batches.
Out:  losses and samples, as of any `AdversarialPair`; running statistics.
Knows nothing of the players' architecture.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.adversarial.batches import AdversarialBatch
from weightloom.adversarial.pair import AdversarialPair, PlayersOfConditions
from weightloom.conditions.statistics import set_statistics
from weightloom.errors import ConfigError, ShapeError


class StatisticsPair(AdversarialPair):
    """A pair whose players are told how real and generated samples are distributed.

    Each player's condition is that of the task, joined with means and standard deviations of
    features of real samples, and of generated ones: (tasks, condition_dim + 4 · width). They are
    running averages over the batches before, kept with the model, so that samples can be drawn
    without real ones. No single sample and no noise is among them, and no gradient passes through.

    Args:
        generator: As in `AdversarialPair`; its condition has the width above.
        discriminator: As in `AdversarialPair`, with the same condition.
        noise_dim: As in `AdversarialPair`.
        tasks: Number of tasks. Each batch holds all of them, in one order.
        width: Width of the features.
        features: Network of one sample, (batch, *shape) to (batch, width); it is not trained.
            Default: the sample itself, flattened.
        keep: Share of the running averages kept per turn, from 0 to below 1.
        **options: Loss, packing and penalised inputs, as in `AdversarialPair`.

    Raises:
        ConfigError: If ``keep`` is out of range.

    Example:
        >>> from weightloom.adversarial import GeneratedPlayer
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> from weightloom.networks import mlp
        >>> make, judge = mlp([4, 16, 2]), mlp([2, 16, 1])
        >>> players = [GeneratedPlayer(net, MLPHyperNetwork(net, 3 + 8)) for net in (make, judge)]
        >>> pair = StatisticsPair(*players, noise_dim=4, tasks=3, width=2)
        >>> pair.sample(torch.eye(3), count=5).shape
        torch.Size([3, 5, 2])
    """

    seen: Tensor
    """Running statistics, (tasks, 4 · width): of real samples, then of generated ones."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        noise_dim: int,
        tasks: int,
        width: int,
        features: nn.Module | None = None,
        keep: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(generator, discriminator, noise_dim, **options)
        if not 0 <= keep < 1:
            raise ConfigError(
                f"`keep={keep}` is no decay. It is the share of the running statistics kept per "
                "turn, from 0, for those of the last batch, to below 1. Pass for instance 0.9."
            )
        self.features = (features or nn.Flatten()).requires_grad_(False)
        self.keep = keep
        self.register_buffer("seen", torch.zeros(tasks, 4 * width))

    def players(self, condition: Float[Tensor, "tasks condition_dim"]) -> PlayersOfConditions:
        """Return the players of each condition and its statistics.

        Raises:
            ShapeError: If there are more or fewer conditions than tasks.
        """
        if len(condition) != len(self.seen):
            raise ShapeError(
                f"{len(condition)} conditions for statistics of {len(self.seen)} tasks. Statistics "
                "are kept for each task, in the order of the batches. Pass the conditions of all "
                "tasks, and choose among the samples."
            )
        return super().players(torch.cat([condition, self.seen.to(condition.dtype)], dim=1))

    def forward(self, batch: AdversarialBatch, turn: str) -> Float[Tensor, " tasks"]:
        """Loss of the player whose turn it is; in train mode the statistics are updated after it.

        Raises:
            ShapeError: As in `AdversarialPair`.
            NonFiniteError: As in `AdversarialPair`.
        """
        losses = super().forward(batch, turn)
        if self.training:
            with torch.no_grad():
                self._look(batch.real, self.players(batch.condition).generate(batch.noise))
        return losses

    def _look(self, *kinds: Tensor) -> None:
        """Add the statistics of real and of generated samples to the running averages."""
        known = [
            set_statistics(self.features(its.flatten(0, 1)).unflatten(0, its.shape[:2]))
            for its in kinds
        ]
        self.seen.lerp_(torch.cat(known, dim=1).to(self.seen), 1 - self.keep)
