"""The base network trained from scratch on each support set, without meta-training."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from weightloom.adapt import fit_params
from weightloom.base import apply_per_task
from weightloom.learners.learner import Learner, Support
from weightloom.losses import masked_loss
from weightloom.params import Params


class FromScratch(Learner):
    """Newly initialised base network, trained by Adam on the support set of each task alone.

    Args:
        build: Function that builds a newly initialised base for a number of outputs: the ways, or
            the width of a target.
        steps: Gradient steps per task.
        inner_lr: Adam's learning rate.
    """

    trained = False

    def __init__(
        self, build: Callable[[int], nn.Module], steps: int = 100, inner_lr: float = 1e-2
    ) -> None:
        super().__init__()
        self.build, self.steps, self.inner_lr = build, steps, inner_lr
        self.base = build(2)

    def adapt(self, support: Support) -> Params:
        """Train one network per task, all in one batch."""
        labels = not support.y.is_floating_point()
        self.base = self.build(self.ways_of(support) if labels else support.y.shape[2])
        tasks = len(support.mask)
        start = {
            n: p.detach().expand(tasks, *p.shape)
            for n, p in copy.deepcopy(self.base).named_parameters()
        }

        def loss(outputs: Tensor) -> Tensor:
            return masked_loss(self.loss_per_task, outputs, support.y, support.mask)

        return fit_params(self.base, start, support.x, loss, self.steps, self.inner_lr)

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run each task's network."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
