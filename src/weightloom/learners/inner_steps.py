"""Gradient steps on the support set after any other method: its bilevel form."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.adapt import descend
from weightloom.learners.learner import Learner, Support
from weightloom.losses import masked_loss
from weightloom.params import Params


class InnerSteps(Learner):
    """Initialise parameters with another method, then take gradient steps on the support set.

    Both are trained end to end. Of a parameter held as factors, the factors are adapted. With a
    hypernetwork this is a generated initialisation, similar to HyperMAML; with an initialisation
    shared by all tasks it is MAML.

    Args:
        learner: The method whose ``adapt`` returns the initial parameters.
        steps: Gradient steps on the support set.
        inner_lr: Initial learning rate of the steps; learned, one for all parameters.
        first_order: Treat the gradients of the inner steps as constants.

    Source:
        Przewięźlikowski et al., "HyperMAML: few-shot adaptation of deep models with hypernetworks"
        (2022), loosely: there a hypernetwork writes one update from the support set and its
        predictions; here it writes the initialisation.
    """

    inner_loop = True

    def __init__(
        self, learner: Learner, steps: int = 1, inner_lr: float = 0.01, first_order: bool = False
    ) -> None:
        super().__init__()
        self.learner, self.steps, self.first_order = learner, steps, first_order
        self.base, self.loss_per_task = learner.base, learner.loss_per_task
        self.log_inner_lr = nn.Parameter(torch.tensor(inner_lr).log())

    def condition(self, support: Support) -> Tensor | None:
        """Condition of each task by the inner method, before the steps."""
        return self.learner.condition(support)

    def adapt(self, support: Support) -> Params:
        """Initialise parameters, then fit them to the support set."""

        def loss(params: Mapping[str, Tensor]) -> Tensor:
            outputs = self.learner.predict(params, support.x)
            return masked_loss(self.loss_per_task, outputs, support.y, support.mask)

        start = self.learner.adapt(support)
        return descend(
            start, loss, self.steps, self.log_inner_lr.exp(), first_order=self.first_order
        )

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Predict with the inner method."""
        return self.learner.predict(params, x)
