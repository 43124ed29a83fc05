"""Prototypical networks: the class whose mean feature is nearest."""

import torch
from torch import Tensor, nn

from weightloom.conditions import class_statistics
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
        Euclidean distance; a learned temperature is added.
    """

    def __init__(self, base: nn.Module, start_scale: float = 1.0, classes: int = 0) -> None:
        super().__init__(base, classes)
        self.log_scale = nn.Parameter(torch.tensor(start_scale).log())

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Head from the class means."""
        return scaled_prototypes(
            class_statistics(features, labels, mask, self.ways).mean, self.log_scale
        )
