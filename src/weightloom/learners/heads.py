"""A linear head generated from the support set, on a trunk that all tasks share."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from weightloom.conditions import class_statistics
from weightloom.errors import ConfigError
from weightloom.hypernets import HeadHyperNetwork
from weightloom.hypernets.head import full_precision, prototype_head
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import (
    features_of,
    flat_features,
    head_of,
    known_features,
    run_per_task,
    split_or_features,
    trunk_of,
)
from weightloom.losses import cross_entropy_per_task, loss_of_those_there
from weightloom.params import Params, sub
from weightloom.tasks import Examples, Tasks


class HeadLearner(Learner):
    """What methods with a shared trunk and a head per task have in common.

    In training the trunk reads every image once, and every image takes its turn in the support set:
    from the features of a task several tasks are made, in which the images of a class change
    places. That is several times more to learn from for the same work, and the same for every
    method of this kind.

    Args:
        base: A network with a trunk that is shared and a head that every task brings, of any ways:
            what `split` takes, of which the trunk is used, or one that maps inputs to features. If
            features are what a linear layer gives, end the network in ``nn.Identity()``.
        classes: How many classes meta-training draws from, `Tasks.classes` saying which; the trunk
            is then also trained to tell all of them apart, which helps where classes are few. 0: it
            is not.

    Raises:
        ConfigError: If ``base`` is no network, or it has to be known how many features it has and
            it does not say.
    """

    def __init__(self, base: nn.Module, classes: int = 0) -> None:
        super().__init__()
        base = split_or_features(base, type(self).__name__)
        self.base, self.all_classes = with_generated_head(base), None
        if classes:
            width = getattr(trunk_of(base), "channels", None) or known_features(
                base, type(self).__name__
            )
            self.all_classes = CosineClassifier(width, classes)

    @abstractmethod
    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Return weight and bias of the head, (tasks, ways, features) and (tasks, ways), by their names in the base."""

    def features(self, x: Any) -> Tensor:
        """Run the shared trunk once on the inputs of all tasks, (tasks, batch, features) in single precision."""
        return flat_features(trunk_of(self.base), x)

    def condition(self, support: Support) -> Tensor:
        """Mean feature of each class, (tasks, ways, features)."""
        return class_statistics(self.features(support.x), support.y, support.mask).mean

    def adapt(self, support: Support) -> Params:
        """Make the head of each task: a row for every class that the support set has."""
        return self.head(self.features(support.x), support.y, support.mask)

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run the shared trunk, then each task's head."""
        return self._answer(params, self.features(x))

    def _answer(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        with full_precision(features):
            return run_per_task(head_of(self.base), sub(params, "head"), features)

    def forward(self, tasks: Tasks) -> Tensor:
        """Return the loss of each task, the mean over the turns that its images take in the support set."""
        support, query = self.features(tasks.support_x), self.features(tasks.query_x)
        taken = in_turns(
            tasks._replace(
                support=tasks.support._replace(x=support), query=tasks.query._replace(x=query)
            )
        )
        params = self.head(*taken.support)
        losses = (
            self.loss_of(self._answer(params, taken.query_x), taken.query)
            .view(-1, len(support))
            .mean(0)
        )
        if self.all_classes is None:
            return losses
        logits = self.all_classes(torch.cat([support, query], dim=1))
        return losses + loss_of_those_there(
            cross_entropy_per_task, logits, *training_classes(tasks, self, logits.shape[2])
        )


class HyperHead(HeadLearner):
    """A shared trunk, and a head generated from its features of the support set.

    Args:
        base: As for `HeadLearner`.
        start_scale: How sharp the head is at step 0.
        classes: As for `HeadLearner`.
    """

    def __init__(self, base: nn.Module, start_scale: float = 1.0, classes: int = 0) -> None:
        super().__init__(base, classes)
        self.hyper = HeadHyperNetwork("head", start_scale=start_scale)

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Generate the head, of as many rows as there are labels, or as ``ways`` says."""
        params: Params = self.hyper(features, labels, mask, self.ways)
        return params


class CosineClassifier(nn.Module):
    """Tell all training classes apart by the angle between their directions and the features, averaged over places.

    Args:
        channels: Channels of the trunk's last map, whose features come channel by channel.
        classes: How many classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, channels))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, features: Tensor) -> Tensor:
        """Classify features, (tasks, batch, features) to (tasks, batch, classes)."""
        averaged = features.unflatten(2, (self.directions.shape[1], -1)).mean(3)
        return (
            self.log_scale.exp() * normalize(averaged, dim=2) @ normalize(self.directions, dim=1).mT
        )


def training_classes(tasks: Tasks, learner: Learner, count: int) -> tuple[Tensor, Tensor]:
    """Return the class of the pool of every support example, then of every query example, and which are there.

    Raises:
        ConfigError: If the tasks do not say it, or there are more than ``count``.
    """
    if tasks.classes is None:
        raise ConfigError(
            f"`Tasks.classes` is None. {type(learner).__name__} learns to tell all training "
            "classes apart, and labels only say which of its own a task means. Pass `classes`, "
            "(tasks, ways), the number in the pool of the class of each label, as `ClassTasks` "
            "does."
        )
    if (most := int(tasks.classes.max())) >= count:
        raise ConfigError(
            f"`Tasks.classes` holds a class {most}, but {type(learner).__name__} was built with "
            f"`classes={count}`. It "
            "tells apart all classes that meta-training draws from. Pass as `classes` how many the "
            "pool has."
        )
    labels, there = (
        torch.cat(both, dim=1) for both in zip(tasks.support[1:], tasks.query[1:], strict=True)
    )
    return tasks.classes.gather(1, labels.masked_fill(~there, 0)), there


def in_turns(tasks: Tasks) -> Tasks:
    """Make several tasks of each, in which the examples of a class change places.

    The turns come before the tasks.

    The examples of a class stand in a ring, support first; in turn r the ring is turned by r times
    the shots of the class. There are as many turns as support sets fit into the smallest ring, and
    two at least. Examples that are masked stay where they are.

    Args:
        tasks: Inputs are features, (tasks, rows, features).

    Returns:
        (turns * tasks) tasks, without what is hidden.
    """
    (support, query), shots = tasks[:2], tasks.support_y.shape[1]
    there = torch.cat([support.mask, query.mask], dim=1)
    labels = torch.cat([support.y, query.y], dim=1)
    labels = labels.masked_fill(
        ~there, 1 + int(labels.masked_fill(~there, 0).max())
    )  # a class of their own
    member = one_hot(labels)
    of_support = (member * there[..., None])[:, :shots].sum(1)  # (tasks, classes)
    sizes = member.sum(1)
    fit = (sizes // of_support.clamp(min=1)).masked_fill(of_support == 0, len(labels[0]))
    order = labels.argsort(dim=1, stable=True)  # ring after ring
    rank = torch.arange(labels.shape[1], device=labels.device)
    ring = labels.gather(1, order)
    first, size, step = (
        (part.gather(1, ring)) for part in (sizes.cumsum(1) - sizes, sizes, of_support)
    )
    every = torch.cat([support.x, query.x], dim=1)
    offset = len(rank) * torch.arange(len(labels), device=labels.device)[:, None]
    turned = []
    for turn in range(max(2, int(fit.min()))):
        source = order.gather(1, first + (rank - first + turn * step) % size)
        source = torch.empty_like(order).scatter(1, order, source) + offset
        turned.append(every.flatten(0, 1).index_select(0, source.flatten()).view(every.shape))
    support_x, query_x = torch.cat(turned).split([shots, len(rank) - shots], dim=1)

    def repeated(side: Examples, x: Tensor) -> Examples:
        return Examples(
            x.contiguous(), side.y.repeat(len(turned), 1), side.mask.repeat(len(turned), 1)
        )

    return Tasks(repeated(support, support_x), repeated(query, query_x))


def scaled_prototypes(mean: Tensor, log_scale: Tensor) -> Params:
    """Return the head of the class means (tasks, ways, features), on squared distances per feature times a scale."""
    with full_precision(mean):
        weight, bias = prototype_head(mean)
    scale = log_scale.exp() / mean.shape[2]
    return Params({"head.weight": weight * scale, "head.bias": bias * scale})


def with_generated_head(base: nn.Module) -> nn.Module:
    """The base with a frozen head of one row of zeros: every task brings its head, of any ways.

    Training has no use for the own values, and a checkpoint then fits whatever ways it is judged
    by. The trunk is that of ``base``, which keeps its own head.
    """
    head = nn.utils.skip_init(nn.Linear, features_of(base) or 1, 1).requires_grad_(False)
    for parameter in head.parameters():
        parameter.zero_()
    shared = copy.copy(base)
    shared._modules = {**base._modules, "head": head}
    return shared
