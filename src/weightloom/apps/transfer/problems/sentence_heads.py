"""Heads in closed form on features of sentences: class means, and their mixture with ridge.

In:   features and labels of the known texts, names of the classes among them.
Out:  logits of other texts, and of each known text left out.
Knows nothing of where features come from.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightloom.conditions import class_statistics
from weightloom.hypernets.head import prototype_head, ridge_head
from weightloom.hypernets.left_out import left_out_prototypes, temperature
from weightloom.losses import cross_entropy_per_task

SCALE = 15.0
"""Scale of logits of class means, which are squared distances between points of unit length."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties of a ridge head that its left-out loss is compared at."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the ridge head in a mixture that are compared."""
RIDGE_SCALE = 12.0
"""Scale of the logits of a ridge head, which fits targets 0 and 1, before its temperature."""


class Head(NamedTuple):
    """A linear head of each task."""

    weight: Float[Tensor, "tasks ways features"]
    bias: Float[Tensor, "tasks ways"]
    left_out: Float[Tensor, "tasks examples ways"]
    """Logits of each known text by the head of the others."""

    def __call__(
        self, features: Float[Tensor, "tasks queries features"]
    ) -> Float[Tensor, "tasks queries ways"]:
        """Return the logits of texts."""
        return features @ self.weight.mT + self.bias[:, None]


def mean_head(
    features: Float[Tensor, "tasks examples features"], labels: Int[Tensor, "tasks examples"]
) -> Head:
    """Score a text by its squared distance to the mean of each class, name included.

    From two known texts of a class on, logits are multiplied by the temperature of the task with
    which left-out texts are predicted best.
    """
    statistics = class_statistics(features, labels)
    left_out = SCALE * left_out_prototypes(features, labels, statistics.mean, statistics.shots)
    weight, bias = (SCALE * part for part in prototype_head(statistics.mean))
    several = statistics.shots.gather(1, labels) > 1
    return _tempered(Head(weight, bias, left_out), labels, several)


def mixed_head(
    features: Float[Tensor, "tasks examples features"], labels: Int[Tensor, "tasks examples"]
) -> Head:
    """Mix class means and ridge regression, by the loss of left-out texts.

    Every penalty and every share of the ridge head is compared on each task. With one known text
    per class nothing can be left out: the head is that of the means.
    """
    means = mean_head(features, labels)
    if features.shape[1] == means.weight.shape[1]:
        return means
    there = torch.ones_like(labels, dtype=torch.bool)
    heads, ways = [means], means.weight.shape[1]
    for penalty in features.new_tensor(PENALTIES):
        found = ridge_head(features, labels, there, ways, penalty.expand(len(features)))
        ridge = _tempered(Head(*(RIDGE_SCALE * part for part in found)), labels, there)
        heads += [_mixed(means, ridge, share, labels) for share in SHARES]
    losses = torch.stack([cross_entropy_per_task(head.left_out, labels) for head in heads])
    best, tasks = losses.argmin(0), torch.arange(len(features))
    return Head(*(torch.stack(parts)[best, tasks] for parts in zip(*heads, strict=True)))


def _mixed(means: Head, ridge: Head, share: float, labels: Tensor) -> Head:
    parts = zip(means, ridge, strict=True)
    mixed = Head(*((1 - share) * mean + share * other for mean, other in parts))
    return _tempered(mixed, labels, torch.ones_like(labels, dtype=torch.bool))


def _tempered(head: Head, labels: Tensor, there: Tensor) -> Head:
    factor = temperature(head.left_out, labels, there)[:, None]
    return Head(
        factor[..., None] * head.weight, factor * head.bias, factor[..., None] * head.left_out
    )


def left_out_loss(
    features: Float[Tensor, "tasks examples features"], labels: Int[Tensor, "tasks examples"]
) -> Float[Tensor, " tasks"]:
    """Loss of known texts, each classified by the class means of the others.

    It is the loss on a support set that changes of the encoder are fitted to: without leaving out,
    a text is near the mean that it is part of. A text that is alone in its class is not counted;
    where all are, the loss is 0.
    """
    statistics = class_statistics(features, labels)
    logits = SCALE * left_out_prototypes(features, labels, statistics.mean, statistics.shots)
    several = (statistics.shots.gather(1, labels) > 1).to(logits.dtype)
    right = logits.log_softmax(2).gather(2, labels[..., None])[..., 0]
    return -(right * several).sum(1) / several.sum(1).clamp(min=1)
