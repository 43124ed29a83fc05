"""What our methods are held against: the same interface, the same data, the same budget."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.hyper import with_generated_head
from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.base import apply_per_task, apply_shared
from weightloom.conditions import class_statistics
from weightloom.hypernets.head import prototype_head
from weightloom.inner import fine_tune
from weightloom.networks import ConvNet
from weightloom.params import Params, sub


class ProtoNet(Learner):
    """A trunk that is trained, and the class whose mean feature is nearest.

    Args:
        base: A network with a trunk and a linear head; the head is set from the class means.
        start_scale: How sharp the head is at step 0.

    Source:
        Snell, Swersky and Zemel, "Prototypical networks for few-shot learning" (2017), squared Euclidean distance;
        a learned temperature is added.
    """

    base: ConvNet

    def __init__(self, base: ConvNet, start_scale: float = 1.0) -> None:
        super().__init__()
        self.base = with_generated_head(base)
        self.log_scale = nn.Parameter(torch.tensor(start_scale).log())

    def condition(self, support: Support) -> Tensor:
        """Mean feature of each class, (tasks, ways, features)."""
        return class_statistics(apply_shared(self.base.trunk, support.x), support.y, support.mask).mean

    def adapt(self, support: Support) -> Params:
        """Set the head from the class means."""
        mean = self.condition(support)
        weight, bias = prototype_head(mean)
        scale = self.log_scale.exp() / mean.shape[2]
        return {"head.weight": weight * scale, "head.bias": bias * scale}

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run the shared trunk once on all images, then each task's head."""
        logits: Tensor = apply_per_task(self.base.head, sub(params, "head"), apply_shared(self.base.trunk, x))
        return logits


class NearestCentroid(Learner):
    """The class whose mean image is nearest, in pixels; nothing is trained.

    Args:
        pixels: How many numbers an image holds.
    """

    base: nn.Sequential

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))

    def adapt(self, support: Support) -> Params:
        """Set a linear layer on pixels from the mean images."""
        weight, bias = prototype_head(class_statistics(support.x.flatten(2), support.y, support.mask).mean)
        return {"1.weight": weight, "1.bias": bias}

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Score pixels."""
        logits: Tensor = apply_per_task(self.base, params, x)
        return logits


class FromScratch(Learner):
    """The base network, newly initialised and trained by Adam on the support set of each task alone.

    Args:
        build: Makes the base, newly initialised, for a number of outputs (ways, or the width of a target).
        loss_per_task: Outputs and support targets to one loss per task.
        steps: Gradient steps per task.
        inner_lr: Adam's learning rate.
    """

    def __init__(
        self,
        build: Callable[[int], nn.Module],
        loss_per_task: Callable[[Tensor, Tensor], Tensor],
        steps: int = 100,
        inner_lr: float = 1e-2,
    ) -> None:
        super().__init__()
        self.build, self.loss_per_task, self.steps, self.inner_lr = build, loss_per_task, steps, inner_lr
        self.base = build(2)

    def adapt(self, support: Support) -> Params:
        """Train one network per task, all at once."""
        labels = not support.y.is_floating_point()
        self.base = self.build(int(support.y.max()) + 1 if labels else support.y.shape[2])
        tasks = len(support.x)
        start = {n: p.detach().expand(tasks, *p.shape) for n, p in copy.deepcopy(self.base).named_parameters()}
        there = support.mask.unsqueeze(2)

        def loss(outputs: Tensor) -> Tensor:  # a point that is not there gives no gradient
            return self.loss_per_task(torch.where(there, outputs, outputs.detach()), support.y)

        return fine_tune(self.base, start, support.x, loss, self.steps, self.inner_lr)

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run each task's network."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
