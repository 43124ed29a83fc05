"""Nearest centroid on the raw inputs, without training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.conditions import class_statistics
from weightloom.conditions.classes import ClassStatistics
from weightloom.hypernets.head import prototype_head
from weightloom.hypernets.left_out import left_out_prototypes, temperature
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params
from weightloom.tasks import Tasks


class NearestCentroid(Learner):
    """Nearest-centroid classifier on raw inputs, such as pixels or precomputed features.

    Logits are minus the squared distance to each class mean, in units of the variance between
    class means, times a scale. From two shots of a class on they are also multiplied by a
    temperature per task, with which its support points, each left out in turn, are predicted best.

    Args:
        numbers: Number of values in an input.
        scale: Scale of the logits. `centroid_scale` finds it from tasks.
    """

    base: nn.Sequential
    trained = False

    def __init__(self, numbers: int, scale: float = 3.0) -> None:
        super().__init__()
        self.base, self.scale = nn.Sequential(nn.Flatten(), nn.Linear(numbers, 2)), scale

    def adapt(self, support: Support) -> Params:
        """Linear layer that scores classes by the squared distance to their mean input."""
        x = support.x.flatten(2).masked_fill(~support.mask[..., None], 0.0)
        labels = support.y.masked_fill(~support.mask, 0)
        statistics = class_statistics(x, labels, support.mask)
        scale = self.scale / _between(statistics)
        left_out = scale[:, None, None] * left_out_prototypes(
            x, labels, statistics.mean, statistics.shots
        )
        scale = scale * temperature(
            left_out, labels, support.mask & (statistics.shots.gather(1, labels) > 1)
        )
        weight, bias = prototype_head(statistics.mean)
        return Params({"1.weight": scale[:, None, None] * weight, "1.bias": scale[:, None] * bias})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the linear layer of each task."""
        logits: Tensor = apply_per_task(self.base, params, x)
        return logits


def centroid_scale(tasks: Tasks, start: float = 3.0) -> float:
    """Return the scale of `NearestCentroid` with which queries of tasks are predicted best.

    Args:
        tasks: Tasks with inputs as numbers, such as some of meta-training.
        start: Scale before any query is seen; the result is 0.09 to 11 times this.
    """
    statistics = class_statistics(tasks.support_x.flatten(2), *tasks.support[1:])
    distance = torch.cdist(tasks.query_x.flatten(2), statistics.mean).square()
    logits = -start * distance / _between(statistics)[:, None, None]
    pooled = (part.flatten(0, 1)[None] for part in (logits, *tasks.query[1:]))
    return start * temperature(*pooled).item()


def _between(statistics: ClassStatistics) -> Tensor:
    """Return the squared distance of class means from their middle, per degree of freedom."""
    mean = statistics.mean
    apart = (mean - mean.mean(1, keepdim=True)).square().sum((1, 2))
    return (apart / max(mean.shape[1] - 1, 1)).clamp(min=1e-12)
