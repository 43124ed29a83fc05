"""Heads on features of sentences: class means, their mixture with ridge, a fitted layer.

In:   features and labels of the known texts, names of the classes among them.
Out:  logits of other texts, and of each known text left out.
Knows nothing of where features come from.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from weightloom.adapt import fit_params
from weightloom.conditions import class_statistics
from weightloom.hypernets.head import prototype_head, ridge_head
from weightloom.hypernets.left_out import left_out_prototypes, temperature
from weightloom.losses import cross_entropy_per_task

SCALE = 15.0
"""Scale of logits of class means, which are squared distances between points of unit length."""
PENALTIES = (0.1, 0.3, 1.0, 3.0)
"""Penalties of a ridge head that its left-out loss is compared at."""
SHARES = (0.0, 0.5, 1.0)
"""Shares of the ridge head in a mixture that are compared."""
RIDGE_SCALE = 12.0
"""Scale of the logits of a ridge head, which fits targets 0 and 1, before its temperature."""


LAYER_STEPS, LAYER_LR = 100, 0.1
"""Steps and rate of a linear layer that is fitted to known texts."""
PARTS = 5
"""Parts of the known texts that are left out in turn where no closed form leaves out."""


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
    features: Float[Tensor, "tasks examples features"],
    labels: Int[Tensor, "tasks examples"],
    judged: Float[Tensor, "tasks examples features"] | None = None,
) -> Head:
    """Score a text by its squared distance to the mean of each class, name included.

    From two known texts of a class on, logits are multiplied by the temperature of the task with
    which left-out texts are predicted best.

    Args:
        features: Features of the known texts.
        labels: Their classes.
        judged: Features to choose the temperature on, from an encoder that was not adapted to these
            texts. Default: ``features``.
    """
    apart = features if judged is None else judged
    factor = _temperature(_means(apart, labels), labels)
    return _scaled(_means(features, labels), factor)


def mixed_head(
    features: Float[Tensor, "tasks examples features"],
    labels: Int[Tensor, "tasks examples"],
    judged: Float[Tensor, "tasks examples features"] | None = None,
) -> Head:
    """Mix class means and ridge regression, by the loss of left-out texts.

    Every penalty and every share of the ridge head is compared on each task. With one known text
    per class nothing can be left out: the head is that of the means.

    Args:
        features: Features of the known texts.
        labels: Their classes.
        judged: Features to choose penalty, share and temperature on, from an encoder that was not
            adapted to these texts. Default: ``features``.
    """
    ways = int(labels.max()) + 1
    if features.shape[1] == ways:
        return mean_head(features, labels)
    sides = (features,) if judged is None else (judged, features)
    means = [_means(its, labels) for its in sides]
    of_means = _temperature(means[0], labels)
    heads, losses = [], []
    for penalty in PENALTIES:
        ridges = [_ridge(its, labels, ways, penalty) for its in sides]
        sizes = of_means, _temperature(ridges[0], labels)
        for share in SHARES:
            known = _mixed(means[0], ridges[0], sizes, share)
            factor = _temperature(known, labels)
            losses.append(cross_entropy_per_task(_scaled(known, factor).left_out, labels))
            heads.append(_scaled(_mixed(means[-1], ridges[-1], sizes, share), factor))
    best, tasks = torch.stack(losses).argmin(0), torch.arange(len(features))
    return Head(*(torch.stack(parts)[best, tasks] for parts in zip(*heads, strict=True)))


def fitted_head(
    features: Float[Tensor, "tasks examples features"], labels: Int[Tensor, "tasks examples"]
) -> Head:
    """Fit a linear layer by gradient steps on the cross-entropy of the known texts.

    With the steps and the rate of `weightloom.learners.probe.LinearProbe`, 100 of Adam at 0.1 from
    zero. Texts are left out in `PARTS` parts, each with a layer of its own.

    Args:
        features: Features of the known texts, of unit length; names last.
        labels: Their classes.

    Source:
        Tian et al., "Rethinking few-shot image classification: a good embedding is all you need?"
        (2020).
    """
    ways = int(labels.max()) + 1
    weight, bias = _fitted_layer(features, labels, ways)
    left_out = features.new_zeros(*labels.shape, ways)
    part = torch.arange(labels.shape[1]) % PARTS
    for number in range(PARTS if labels.shape[1] > ways else 0):
        out = part == number
        its = Head(*_fitted_layer(features[:, ~out], labels[:, ~out], ways), left_out)
        left_out[:, out] = its(features[:, out])
    return Head(weight, bias, left_out)


def _fitted_layer(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    tasks, _, width = features.shape
    start = {
        "weight": features.new_zeros(tasks, ways, width),
        "bias": features.new_zeros(tasks, ways),
    }

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy_per_task(logits, labels)

    found = fit_params(nn.Linear(width, ways), start, features, loss, LAYER_STEPS, LAYER_LR)
    return found["weight"], found["bias"]


def _means(features: Tensor, labels: Tensor) -> Head:
    statistics = class_statistics(features, labels)
    left_out = left_out_prototypes(features, labels, statistics.mean, statistics.shots)
    weight, bias = prototype_head(statistics.mean)
    return Head(SCALE * weight, SCALE * bias, SCALE * left_out)


def _ridge(features: Tensor, labels: Tensor, ways: int, penalty: float) -> Head:
    there = torch.ones_like(labels, dtype=torch.bool)
    found = ridge_head(features, labels, there, ways, features.new_full((len(labels),), penalty))
    return Head(*(RIDGE_SCALE * part for part in found))


def _mixed(means: Head, ridge: Head, sizes: tuple[Tensor, Tensor], share: float) -> Head:
    both = zip(_scaled(means, sizes[0]), _scaled(ridge, sizes[1]), strict=True)
    return Head(*((1 - share) * mean + share * other for mean, other in both))


def _temperature(head: Head, labels: Tensor) -> Tensor:
    """Return the temperature of each task, from known texts that are not alone in their class."""
    several = one_hot(labels).sum(1).gather(1, labels) > 1
    return temperature(head.left_out, labels, several)


def _scaled(head: Head, factor: Tensor) -> Head:
    return Head(*(factor.view(-1, *[1] * (part.ndim - 1)) * part for part in head))


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
