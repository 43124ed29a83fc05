"""Losses of two players, and the penalty on the discriminator's gradient.

In:   scores of real and generated samples, each (tasks, count); inputs of the discriminator.
Out:  one number per task.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from weightloom.errors import ConfigError, nearest

AdversarialLoss = Literal["relativistic", "non-saturating", "wasserstein"]
"""``"relativistic"``: the discriminator scores a real sample above a generated one, pair by pair.
``"non-saturating"``: each sample is classified as real or generated. ``"wasserstein"``: difference
of mean scores, for a discriminator whose gradient is held near norm 1."""

Scores = Float[Tensor, "tasks count"]


def check_loss(kind: str) -> None:
    """Raise a `ConfigError` if a loss is unknown."""
    if kind not in get_args(AdversarialLoss):
        raise ConfigError(
            f"`loss={kind!r}` is unknown. It is the loss of both players. "
            f"{nearest(kind, get_args(AdversarialLoss))}"
        )


def discriminator_loss(
    real: Scores, fake: Scores, kind: AdversarialLoss = "relativistic"
) -> Float[Tensor, " tasks"]:
    """Loss of the discriminator, small if it scores real samples above generated ones.

    Args:
        real: Scores of real samples.
        fake: Scores of generated samples.
        kind: The loss.

    Source:
        Goodfellow et al., "Generative adversarial nets" (2014); relativistic pairs: Jolicoeur-
        Martineau, "The relativistic discriminator" (2019); Arjovsky, Chintala and Bottou,
        "Wasserstein generative adversarial networks" (2017).

    Example:
        >>> discriminator_loss(torch.zeros(2, 4), torch.zeros(2, 4))  # ln 2: undecided
        tensor([0.6931, 0.6931])
    """
    if kind == "wasserstein":
        return fake.mean(1) - real.mean(1)
    if kind == "relativistic":
        return softplus(fake - real).mean(1)
    return (softplus(fake) + softplus(-real)).mean(1)


def generator_loss(
    real: Scores, fake: Scores, kind: AdversarialLoss = "relativistic"
) -> Float[Tensor, " tasks"]:
    """Loss of the generator, small if its samples score above real ones.

    Args:
        real: Scores of real samples; read by ``"relativistic"`` only.
        fake: Scores of generated samples.
        kind: The loss.

    Example:
        >>> generator_loss(torch.zeros(1, 2), torch.full((1, 2), 3.0), "wasserstein")
        tensor([-3.])
    """
    if kind == "wasserstein":
        return -fake.mean(1)
    return softplus(real - fake if kind == "relativistic" else -fake).mean(1)


def gradient_penalty(
    scores: Scores, inputs: Float[Tensor, "tasks count *shape"], norm: float = 0.0
) -> Float[Tensor, " tasks"]:
    """Mean squared distance of the norm of the score's gradient from ``norm``, differentiable.

    With ``norm=0`` at real samples this is R1, at generated samples R2, each without its factor of
    one half; with ``norm=1`` between the two it is the penalty of the Wasserstein loss.

    Args:
        scores: Scores of the inputs, computed from them.
        inputs: Inputs of the discriminator, with ``requires_grad``.
        norm: Norm at which there is no penalty.

    Source:
        Mescheder, Geiger and Nowozin, "Which training methods for GANs do actually converge?"
        (2018); Gulrajani et al., "Improved training of Wasserstein GANs" (2017).

    Example:
        >>> x = torch.ones(1, 5, 2, requires_grad=True)
        >>> gradient_penalty(x @ torch.tensor([3.0, 4.0]), x).tolist()
        [25.0]
    """
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    squares = gradient.flatten(2).square().sum(2)
    if norm:
        squares = ((squares + 1e-12).sqrt() - norm).square()
    return squares.mean(1)
