"""A linear head generated from the support set, on a trunk that all tasks share."""

import copy
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.apps.fewshot.methods.trunks import features_of, head_of, run_per_task, run_shared, trunk_of
from weightloom.conditions import class_statistics
from weightloom.hypernets import HeadHyperNetwork
from weightloom.hypernets.head import full_precision, prototype_head
from weightloom.losses import cross_entropy_per_task
from weightloom.params import Params, sub
from weightloom.tasks import Tasks


class HeadLearner(Learner):
    """What methods with a shared trunk and a head per task have in common.

    In training the trunk reads every image once, and every image takes its turn in the support set: from the features
    of a task several tasks are made, in which the images of a class change places. That is several times more to learn
    from for the same work, and the same for every method of this kind.

    Args:
        base: A network with a trunk that is shared and a head that every task brings, of any ways.
        classes: How many classes meta-training draws from, `Tasks.hidden` saying which; the trunk is then also trained
            to tell all of them apart, which helps where classes are few. 0: it is not.
    """

    def __init__(self, base: nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.base = with_generated_head(base)
        width = getattr(trunk_of(self.base), "channels", 0)
        self.all_classes = CosineClassifier(width, classes) if classes else None

    @abstractmethod
    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Return weight and bias of the head, (tasks, ways, features) and (tasks, ways), by their names in the base."""

    def features(self, x: Tensor) -> Tensor:
        """Run the shared trunk once on the inputs of all tasks, (tasks, batch, features) in single precision."""
        return run_shared(trunk_of(self.base), x)

    def condition(self, support: Support) -> Tensor:
        """Mean feature of each class, (tasks, ways, features)."""
        return class_statistics(self.features(support.x), support.y, support.mask).mean

    def adapt(self, support: Support) -> Params:
        """Make the head of each task: a row for every class that the support set has."""
        return self.head(self.features(support.x), support.y, support.mask)

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the shared trunk, then each task's head."""
        return self._answer(params, self.features(x))

    def _answer(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        with full_precision(features):
            return run_per_task(head_of(self.base), sub(params, "head"), features)

    def forward(self, tasks: Tasks) -> Tensor:
        """Return the loss of each task, the mean over the turns that its images take in the support set."""
        support, query = self.features(tasks.support_x), self.features(tasks.query_x)
        taken = in_turns(support, query, tasks)
        params = self.head(taken.support_x, taken.support_y, taken.support_mask)
        losses = self.loss_per_task(self._answer(params, taken.query_x), taken.query_y).view(-1, len(support)).mean(0)
        if self.all_classes is None:
            return losses
        labels = tasks.hidden.gather(1, torch.cat([tasks.support_y, tasks.query_y], dim=1))
        return losses + cross_entropy_per_task(self.all_classes(torch.cat([support, query], dim=1)), labels)


class HyperHead(HeadLearner):
    """A shared trunk, and a head generated from its features of the support set.

    Args:
        base: A network with a trunk that is shared and a head that is generated.
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
        return self.log_scale.exp() * normalize(averaged, dim=2) @ normalize(self.directions, dim=1).mT


def in_turns(support: Tensor, query: Tensor, tasks: Tasks) -> Tasks:
    """Make several tasks of each, in which the examples of a class change places; the turns come before the tasks.

    The examples of a class stand in a ring, support first; in turn r the ring is turned by r times the shots. There are
    as many turns as support sets fit into the ring, and two at least.

    Args:
        support: Features of the support examples, (tasks, ways * shots, features), class by class.
        query: Features of the query examples, (tasks, ways * queries, features), class by class.
        tasks: Where they come from; where it has masked examples, it is returned with the features, as one turn.

    Returns:
        (turns * tasks) tasks, whose inputs are features.
    """
    ways = int(tasks.hidden.shape[1])
    parts = [values.unflatten(1, (ways, -1)) for values in (support, query)]
    shots, queries = (part.shape[2] for part in parts)
    turns = max(2, (shots + queries) // shots) if bool(tasks.support_mask.all()) else 1
    ring = torch.cat(parts, dim=2)
    turned = torch.cat([ring.roll(-turn * shots, dims=2) for turn in range(turns)])
    labels = [y.repeat(turns, 1) for y in (tasks.support_y, tasks.query_y)]
    return Tasks(
        turned[:, :, :shots].flatten(1, 2),
        labels[0],
        tasks.support_mask.repeat(turns, 1),
        turned[:, :, shots:].flatten(1, 2),
        labels[1],
        tasks.hidden.repeat(turns, 1),
    )


def scaled_prototypes(mean: Tensor, log_scale: Tensor) -> Params:
    """Return the head of the class means (tasks, ways, features), on squared distances per feature times a scale."""
    with full_precision(mean):
        weight, bias = prototype_head(mean)
    scale = log_scale.exp() / mean.shape[2]
    return Params({"head.weight": weight * scale, "head.bias": bias * scale})


def with_generated_head(base: nn.Module) -> nn.Module:
    """The base with a frozen head of one row of zeros: every task brings its head, of any ways.

    Training has no use for the own values, and a checkpoint then fits whatever ways it is judged by. The trunk is that
    of ``base``, which keeps its own head.
    """
    head = nn.utils.skip_init(nn.Linear, features_of(base), 1).requires_grad_(False)
    for parameter in head.parameters():
        parameter.zero_()
    shared = copy.copy(base)
    shared._modules = {**base._modules, "head": head}
    return shared
