"""Methods with a trunk shared by all tasks and a linear head from each support set."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from weightloom.conditions import class_statistics
from weightloom.conditions.classes import ClassStatistics
from weightloom.errors import ConfigError
from weightloom.hypernets import HeadHyperNetwork
from weightloom.hypernets.head import LearnedScale, full_precision, prototype_head
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
    """Base class of methods with a shared trunk and a linear head per task.

    In training, the trunk runs once per image, and each task becomes several: the images of a class
    exchange places between support and query set (`in_turns`). This multiplies the training signal
    without more work for the trunk, in the same way for every method of this kind.

    Args:
        base: A network that maps inputs to features, or one with a linear head, as `split` takes
            it, whose head is replaced. If a linear layer outputs the features, end the network in
            ``nn.Identity()``.
        classes: Number of classes in the meta-training pool, numbered by `Tasks.classes`. The trunk
            is then also trained to classify all of them, which helps if the pool is small. 0: it is
            not.

    Raises:
        ConfigError: If ``base`` is not a module, or ``classes`` is set and the width of its
            features is unknown.
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
        """Compute the head of each task from features of its support set.

        Args:
            features: Features of the support examples, (tasks, shots, features).
            labels: Their labels, (tasks, shots).
            mask: True for real examples, (tasks, shots).

        Returns:
            ``head.weight``, (tasks, ways, features), and ``head.bias``, (tasks, ways).
        """

    def features(self, x: Any) -> Tensor:
        """Features of the shared trunk, (tasks, batch, features), in float32 or finer."""
        return flat_features(trunk_of(self.base), x)

    def condition(self, support: Support) -> Tensor:
        """Mean feature of each class, (tasks, ways, features)."""
        return class_statistics(self.features(support.x), support.y, support.mask).mean

    def adapt(self, support: Support) -> Params:
        """Head of each task, with a row for every class in the support set."""
        return self.head(self.features(support.x), support.y, support.mask)

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run the shared trunk, then each task's head."""
        return self._answer(params, self.features(x))

    def _answer(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        with full_precision(features):
            return run_per_task(head_of(self.base), sub(params, "head"), features)

    def forward(self, tasks: Tasks) -> Tensor:
        """Loss of each task, (tasks,), a mean over the tasks made of it by `in_turns`.

        With ``classes``, the loss of classifying the whole pool is added.
        """
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
    """Shared trunk, and a head generated from its features of the support set.

    Args:
        base: As for `HeadLearner`.
        start_scale: Scale of the logits at step 0.
        classes: As for `HeadLearner`.
    """

    def __init__(self, base: nn.Module, start_scale: float = 1.0, classes: int = 0) -> None:
        super().__init__(base, classes)
        self.hyper = HeadHyperNetwork("head", start_scale=start_scale)

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Generate the head, with one row per label, or ``ways`` rows if that is set."""
        params: Params = self.hyper(features, labels, mask, self.ways)
        return params


class CosineClassifier(nn.Module):
    """Cosine classifier of all training classes, on features averaged over spatial positions.

    Args:
        channels: Channels of the trunk's last feature map, flattened channel by channel.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, channels))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, features: Tensor) -> Tensor:
        """Logits of features: (tasks, batch, features) to (tasks, batch, classes)."""
        averaged = features.unflatten(2, (self.directions.shape[1], -1)).mean(3)
        return (
            self.log_scale.exp() * normalize(averaged, dim=2) @ normalize(self.directions, dim=1).mT
        )


def training_classes(tasks: Tasks, learner: Learner, count: int) -> tuple[Tensor, Tensor]:
    """Class in the training pool of every example, support before query, and the mask.

    Args:
        tasks: Tasks with `Tasks.classes`.
        learner: The method, for messages.
        count: Number of classes in the pool.

    Returns:
        Classes and mask, each (tasks, support + query).

    Raises:
        ConfigError: If `Tasks.classes` is None, or holds a class of ``count`` or more.
    """
    if tasks.classes is None:
        raise ConfigError(
            f"`Tasks.classes` is None. {type(learner).__name__} learns to tell all training "
            "classes apart, and labels only number the classes within a task. Pass `classes`, "
            "(tasks, ways), the number in the pool of the class of each label, as `ClassTasks` "
            "does."
        )
    if (most := int(tasks.classes.max())) >= count:
        raise ConfigError(
            f"`Tasks.classes` holds a class {most}, but {type(learner).__name__} was built with "
            f"`classes={count}`. It tells apart all classes that meta-training draws from. Pass "
            "their number as `classes`."
        )
    labels, there = (
        torch.cat(both, dim=1) for both in zip(tasks.support[1:], tasks.query[1:], strict=True)
    )
    return tasks.classes.gather(1, labels.masked_fill(~there, 0)), there


def in_turns(tasks: Tasks) -> Tasks:
    """Make several tasks of each by rotating its examples through the support set.

    The examples of a class form a ring, support before query; in turn r the ring is rotated by r
    times the shots of the class. The number of turns is the number of support sets that fit into
    the smallest ring, and at least two. Masked examples keep their place.

    Args:
        tasks: Tasks whose inputs are features, (tasks, rows, features).

    Returns:
        (turns * tasks) tasks, turn by turn, without `Tasks.hidden` and `Tasks.classes`.
    """
    (support, query), shots = tasks[:2], tasks.support_y.shape[1]
    there = torch.cat([support.mask, query.mask], dim=1)
    labels = torch.cat([support.y, query.y], dim=1)
    # Masked examples form one more class, which is not rotated.
    labels = labels.masked_fill(~there, 1 + int(labels.masked_fill(~there, 0).max()))
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


def scaled_prototypes(statistics: ClassStatistics, scale: LearnedScale) -> Params:
    """Linear head with logits of a scale times minus the squared distance per feature.

    The part of the distance that is the same for all classes is left out.

    Args:
        statistics: Statistics of the classes of each task.
        scale: Scale of the logits.
    """
    mean = statistics.mean
    with full_precision(mean):
        weight, bias = prototype_head(mean)
    each = scale(statistics.shots.mean(1))[:, None] / mean.shape[2]
    return Params({"head.weight": weight * each[..., None], "head.bias": bias * each})


def with_generated_head(base: nn.Module) -> nn.Module:
    """The base with a frozen head of one row of zeros, in place of the generated head of any ways.

    The values of that head are never used, and a checkpoint then fits any number of ways. The trunk
    is shared with ``base``, which keeps its own head.
    """
    head = nn.utils.skip_init(nn.Linear, features_of(base) or 1, 1).requires_grad_(False)
    for parameter in head.parameters():
        parameter.zero_()
    shared = copy.copy(base)
    shared._modules = {**base._modules, "head": head}
    return shared
