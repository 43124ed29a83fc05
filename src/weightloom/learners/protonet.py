"""Prototypical networks: the class whose mean feature is nearest."""

from torch import Tensor, nn

from weightloom.conditions import class_statistics
from weightloom.hypernets.head import LearnedScale
from weightloom.learners.heads import HeadLearner, scaled_prototypes
from weightloom.params import Params


class ProtoNet(HeadLearner):
    """Prototypical network: a trained trunk, and the class whose mean feature is nearest.

    Args:
        base: As for `HeadLearner`; the head is computed from the class means.
        start_scale: Scale of the logits at step 0.
        classes: As for `HeadLearner`.

    Source:
        Snell, Swersky and Zemel, "Prototypical networks for few-shot learning" (2017), squared
        Euclidean distance; a learned temperature is added, at the same rate of its own as the
        scales of `HeadHyperNetwork`.
    """

    def __init__(self, base: nn.Module, start_scale: float = 1.0, classes: int = 0) -> None:
        super().__init__(base, classes)
        self.scale = LearnedScale(start_scale)

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Head from the class means."""
        statistics = class_statistics(features, labels, mask, self.ways)
        return scaled_prototypes(statistics, self.scale)
