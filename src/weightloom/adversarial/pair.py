"""Pairs of a generator and a discriminator, with their losses and turns.

In:   two players, or one base with both and the hypernetwork that writes it; batches.
Out:  losses per task for each turn; samples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.adversarial.batches import AdversarialBatch
from weightloom.adversarial.losses import (
    AdversarialLoss,
    check_loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from weightloom.base import per_task
from weightloom.errors import ConfigError, NonFiniteError, ShapeError
from weightloom.hypernets import HyperNetwork
from weightloom.training import Turn

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
"""Names of the players, of their turns, and of the two parts of a base."""
LARGEST_SCORE = 1e5
"""Absolute score at which a training counts as diverged."""


class PlayersOfConditions(NamedTuple):
    """The two players of every condition of a batch."""

    generate: Callable[[Tensor], Tensor]
    """Noise, (tasks, count, noise_dim), to samples, (tasks, count, *shape)."""
    judge: Callable[[Tensor], Tensor]
    """Samples, (tasks, count, *shape), to scores, (tasks, count)."""


class AdversarialPair(nn.Module):
    """A generator and a discriminator, trained against each other in two turns.

    ``weightloom.training.train(pair, source, None, options, turns=pair.turns())`` trains it, with
    batches from `adversarial_source`. A player is any module called with condition and inputs, such
    as those in `weightloom.adversarial.players`.

    Args:
        generator: From condition, (tasks, condition_dim), and noise, (tasks, count, noise_dim), to
            samples, (tasks, count, *shape).
        discriminator: From condition and samples, to scores, (tasks, count) or (tasks, count, 1).
        noise_dim: Width of the noise.
        loss: Loss of both players.
        packing: Samples that the discriminator judges together, joined along their first axis
            (that of channels).
        penalised: Inputs at which the discriminator's gradient is penalised: ``"real"`` (R1),
            ``"fake"`` (R2); none for no penalty. The Wasserstein loss penalises between the two
            instead.

    Raises:
        ConfigError: If ``loss`` is unknown, or a number is below 1.

    Source:
        Huang et al., "The GAN is dead; long live the GAN! A modern baseline GAN" (2024), for the
        default loss; packing: Lin et al., "PacGAN" (2018).
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        noise_dim: int,
        loss: AdversarialLoss = "relativistic",
        packing: int = 1,
        penalised: tuple[str, ...] = ("real", "fake"),
    ) -> None:
        super().__init__()
        check_loss(loss)
        for name, number in (("noise_dim", noise_dim), ("packing", packing)):
            if number < 1:
                raise ConfigError(
                    f"`{name}={number}` is below 1. It counts numbers of noise, or samples judged "
                    "together. Pass 1 or more."
                )
        if set(penalised) - {"real", "fake"}:
            raise ConfigError(
                f"`penalised={penalised}` names other inputs than `real` and `fake`. The gradient "
                'is penalised at these. Pass `("real",)` for R1, `("real", "fake")` for R1 and R2.'
            )
        self.generator, self.discriminator = generator, discriminator
        self.noise_dim, self.loss, self.packing, self.penalised = (
            noise_dim,
            loss,
            packing,
            penalised,
        )

    def players(self, condition: Tensor) -> PlayersOfConditions:
        """Return the players of each condition, (tasks, condition_dim)."""
        return PlayersOfConditions(
            lambda noise: self.generator(condition, noise),
            lambda samples: self.discriminator(condition, samples),
        )

    def forward(self, batch: AdversarialBatch, turn: str) -> Float[Tensor, " tasks"]:
        """Loss of the player whose turn it is, for each task.

        Args:
            batch: Conditions, real samples, noise, and the weight of the penalty.
            turn: ``"generator"`` or ``"discriminator"``.

        Raises:
            ShapeError: If samples differ from the real ones in shape, they cannot be packed, or the
                discriminator returns more than one number per sample.
            NonFiniteError: If a score is beyond `LARGEST_SCORE`: the players diverge.
        """
        players = self.players(batch.condition)
        with torch.set_grad_enabled(turn == GENERATOR and torch.is_grad_enabled()):
            fake = players.generate(batch.noise)
        if fake.shape != batch.real.shape:
            raise ShapeError(
                f"`{type(self.generator).__name__}` made samples of shape {tuple(fake.shape)}, and "
                f"the real ones are {tuple(batch.real.shape)}. Axes are tasks, samples, then those "
                "of a sample, which must agree. Change the last layer of the generator, or the "
                "size of the real samples."
            )
        real, fake = self._packed(batch.real), self._packed(fake)
        has_penalty = self.loss == "wasserstein" or len(self.penalised) > 0
        is_penalised = turn == DISCRIMINATOR and batch.penalty > 0 and has_penalty
        if is_penalised and self.loss != "wasserstein":
            real = real.detach().requires_grad_("real" in self.penalised)
            fake = fake.detach().requires_grad_("fake" in self.penalised)
        real_scores, fake_scores = self.judge_both(players, real, fake)
        self._check_scores(real_scores, fake_scores)
        if turn == GENERATOR:
            return generator_loss(real_scores, fake_scores, self.loss)
        loss = discriminator_loss(real_scores, fake_scores, self.loss)
        if not is_penalised:
            return loss
        return loss + batch.penalty * self._penalty(
            players, (real, fake), (real_scores, fake_scores)
        )

    def judge_both(
        self, players: PlayersOfConditions, real: Tensor, fake: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores of real and of generated samples, packed, in one pass: (tasks, packs) each."""
        scores = self._scores(players, torch.cat([real, fake], dim=1))
        return scores[:, : real.shape[1]], scores[:, real.shape[1] :]

    def _scores(self, players: PlayersOfConditions, samples: Tensor) -> Tensor:
        scores = players.judge(samples)
        if scores.shape == (*samples.shape[:2], 1):
            return scores[..., 0]
        if scores.shape != samples.shape[:2]:
            raise ShapeError(
                f"The discriminator returned {tuple(scores.shape)} for samples "
                f"{tuple(samples.shape)}. It ends in one number for each sample of each task. End "
                "it in `nn.Linear(width, 1)`, or average its outputs over further axes."
            )
        return scores

    def _packed(self, samples: Tensor) -> Tensor:
        """Join every ``packing`` samples along axis 2."""
        if self.packing == 1:
            return samples
        count = samples.shape[1]
        if count % self.packing or samples.ndim < 3:
            raise ShapeError(
                f"{count} samples of each task cannot be judged {self.packing} at a time. Samples "
                "are joined along the axis after that of samples. Pass a multiple of "
                f"{self.packing} samples, each with one axis or more."
            )
        return samples.unflatten(1, (-1, self.packing)).flatten(2, 3)

    def _check_scores(self, *scores: Tensor) -> None:
        largest = max(its.detach().abs().amax().item() for its in scores)
        if largest > LARGEST_SCORE:
            raise NonFiniteError(
                f"A score of the discriminator reached {largest:.3g}. Beyond {LARGEST_SCORE:g} the "
                "players diverge, and no later step would mend it. Raise the weight of the "
                "gradient penalty, as in `Penalty(10.0)`, or lower `outer_lr`."
            )

    def _penalty(
        self,
        players: PlayersOfConditions,
        inputs: tuple[Tensor, Tensor],
        scores: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Penalty on the discriminator's gradient, (tasks,), before its weight."""
        real, fake = inputs
        if self.loss == "wasserstein":
            share = torch.rand(real.shape[:2], dtype=real.dtype, device=real.device)
            share = share.view(*share.shape, *[1] * (real.ndim - 2))
            between = (fake + share * (real - fake)).detach().requires_grad_()
            return gradient_penalty(self._scores(players, between), between, norm=1.0)
        terms = [
            gradient_penalty(its, samples)
            for its, samples in zip(scores, inputs, strict=True)
            if samples.requires_grad
        ]
        return 0.5 * torch.stack(terms).sum(0)

    def turns(self, **settings: Any) -> list[Turn]:
        """Return the turns of both players, the discriminator's first.

        Args:
            **settings: Settings of both turns, as in `weightloom.training.Turn`. Default: Adam's
                ``betas=(0.0, 0.99)``.
        """
        return [
            Turn(name, turn_loss, **self._moving(name), **{"betas": (0.0, 0.99), **settings})
            for name in (DISCRIMINATOR, GENERATOR)
        ]

    def _moving(self, name: str) -> dict[str, Any]:
        """Arguments of `Turn` that select the parameters of a player."""
        return {"parameters": f"{name}.*"}

    @torch.no_grad()
    def sample(
        self,
        condition: Float[Tensor, "tasks condition_dim"],
        count: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples of each condition, without gradients.

        Args:
            condition: Condition of each task.
            count: Samples of each.
            generator: Source of the noise. Default: torch's global one.

        Returns:
            Samples, (tasks, count, *shape).
        """
        noise = torch.randn(len(condition), count, self.noise_dim, generator=generator)
        return self.players(condition).generate(noise.to(condition.device))


def turn_loss(model: nn.Module, batch: AdversarialBatch, turn: str) -> Float[Tensor, " tasks"]:
    """Loss of a turn of an `AdversarialPair`."""
    loss: Tensor = model(batch, turn)
    return loss


class GeneratedPair(AdversarialPair):
    """A pair whose players are both written by one hypernetwork, from one condition.

    With the initialisation ``"bias-hyperinit"`` both start as the ordinary networks of the base.

    Args:
        base: The generator, from noise (count, noise_dim) to samples (count, *shape), and the
            discriminator, from samples to scores (count,) or (count, 1), under these names.
        hyper: Hypernetwork over ``base``, built without ``tasks`` of its own.
        noise_dim: As in `AdversarialPair`.
        loss: As in `AdversarialPair`.
        packing: As in `AdversarialPair`.
        penalised: As in `AdversarialPair`.

    Raises:
        ConfigError: If ``base`` does not consist of ``generator`` and ``discriminator``.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> from weightloom.networks import mlp
        >>> base = nn.ModuleDict(
        ...     {"generator": mlp([4, 16, 2]), "discriminator": mlp([2, 16, 1])}
        ... )
        >>> pair = GeneratedPair(base, MLPHyperNetwork(base, condition_dim=3), noise_dim=4)
        >>> pair.sample(torch.eye(3), count=5).shape
        torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        base: nn.ModuleDict,
        hyper: HyperNetwork,
        noise_dim: int,
        loss: AdversarialLoss = "relativistic",
        packing: int = 1,
        penalised: tuple[str, ...] = ("real", "fake"),
    ) -> None:
        if set(base) != {GENERATOR, DISCRIMINATOR}:
            raise ConfigError(
                f"`base` holds {sorted(base)}. A pair has two players, by these names: "
                f'`nn.ModuleDict({{"{GENERATOR}": …, "{DISCRIMINATOR}": …}})`. Pass that.'
            )
        held = getattr(hyper, "base", base)  # a twin, if some values are not trained
        super().__init__(held[GENERATOR], held[DISCRIMINATOR], noise_dim, loss, packing, penalised)
        self.hyper = hyper
        self._runs = {name: per_task(held[name]) for name in (GENERATOR, DISCRIMINATOR)}

    def players(self, condition: Tensor) -> PlayersOfConditions:
        """Write the players of each condition, (tasks, condition_dim)."""
        params = self.hyper(condition)
        generate, judge = (self._part(params, name) for name in (GENERATOR, DISCRIMINATOR))
        return PlayersOfConditions(generate, judge)

    def _part(self, params: Any, name: str) -> Callable[[Tensor], Tensor]:
        its = params.sub(name) if any(one.startswith(f"{name}.") for one in params) else {}
        return lambda inputs: self._runs[name](its, inputs)

    def _moving(self, name: str) -> dict[str, Any]:
        return {"parameters": "*", "generates": f"{name}.*"}
