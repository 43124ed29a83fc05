"""Nearest centroid on the raw inputs, without training."""

from collections.abc import Mapping

from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.conditions import class_statistics
from weightloom.hypernets.head import prototype_head
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params


class NearestCentroid(Learner):
    """Nearest-centroid classifier on raw inputs, such as pixels or precomputed features.

    Args:
        numbers: Number of values in an input.
    """

    base: nn.Sequential
    trained = False

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Flatten(), nn.Linear(numbers, 2))

    def adapt(self, support: Support) -> Params:
        """Linear layer that scores classes by the squared distance to their mean input."""
        weight, bias = prototype_head(
            class_statistics(support.x.flatten(2), support.y, support.mask).mean
        )
        return Params({"1.weight": weight, "1.bias": bias})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the linear layer of each task."""
        logits: Tensor = apply_per_task(self.base, params, x)
        return logits
