"""Linear probe: features from plain classification of all training classes, a head per task."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from weightloom.adapt import fit_params
from weightloom.learners.heads import HeadLearner, training_classes
from weightloom.learners.trunks import known_features, split
from weightloom.losses import cross_entropy_per_task, loss_of_those_there, masked_loss
from weightloom.params import Params
from weightloom.tasks import Examples, Tasks


class LinearProbe(HeadLearner):
    """Linear probe: classify all training classes, then fit a linear head to each support set.

    Only meta-training changes the trunk.

    Args:
        base: A network with a trunk and a linear head, as `split` takes it.
        classes: Number of classes in the meta-training pool, numbered by `Tasks.classes`.
        steps: Gradient steps of the head, by Adam from zero.
        inner_lr: Adam's learning rate.

    Raises:
        ConfigError: If ``base`` has no such parts, or the width of its features is unknown; in
            training, if `Tasks.classes` is None.

    Source:
        Tian et al., "Rethinking few-shot image classification: a good embedding is all you need?"
        (2020): features of unit length, a linear head. Theirs fits it by L-BFGS, with distillation
        before.
    """

    def __init__(
        self, base: nn.Module, classes: int, steps: int = 100, inner_lr: float = 0.1
    ) -> None:
        super().__init__(base := split(base, type(self).__name__))
        self.steps, self.inner_lr = steps, inner_lr
        self.classify = nn.Linear(known_features(base, type(self).__name__), classes)

    def features(self, x: Any) -> Tensor:
        """Features of the shared trunk, of unit length."""
        return normalize(super().features(x), dim=-1)

    def forward(self, tasks: Tasks) -> Tensor:
        """Loss of each task, (tasks,): classify all its examples among all training classes."""
        logits = 10 * self.classify(
            torch.cat([self.features(tasks.support_x), self.features(tasks.query_x)], dim=1)
        )
        return loss_of_those_there(
            cross_entropy_per_task, logits, *training_classes(tasks, self, logits.shape[2])
        )

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Fit a linear head to the frozen features of each support set."""
        features, ways = features.detach(), self.ways_of(Examples(features, labels, mask))
        start = {
            "weight": features.new_zeros(len(features), ways, features.shape[2]),
            "bias": features.new_zeros(len(features), ways),
        }

        def loss(outputs: Tensor) -> Tensor:
            return masked_loss(self.loss_per_task, outputs, labels, mask)

        head = fit_params(
            nn.Linear(features.shape[2], ways), start, features, loss, self.steps, self.inner_lr
        )
        return Params({f"head.{name}": value for name, value in head.items()})
