"""MAML and ANIL: a learned initialisation from which a few gradient steps adapt to a task."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.adapt import descend
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import head_of, run_per_task, run_shared, split, trunk_of
from weightloom.losses import TaskLoss, loss_per_task, masked_loss
from weightloom.params import Params, ParamSpec, Selector, sub


class MAML(Learner):
    """MAML: gradient steps on the support set from a learned initialisation, the base's parameters.

    Args:
        base: The base network; its own parameters are the initialisation of every task.
        loss_per_task: Outputs and targets to one loss per task, a mean over its points; used in the
            inner and outer loop.
        inner_steps: Gradient steps per task.
        inner_lr: Learning rate of the inner steps.
        first_order: Treat the gradients of the inner steps as constants.
        adapted: Parameters to adapt; the others are shared by all tasks.
        learn_inner_lr: Learn the inner learning rate, one for each parameter tensor.
        momentum: Decay rates of Adam's moments, for inner steps by Adam. None: plain gradient
            descent.

    Raises:
        ConfigError: If ``adapted`` matches no parameter.

    Example:
        >>> maml = MAML(nn.Linear(3, 2), inner_steps=5)
        >>> x, y = torch.randn(7, 10, 3), torch.randn(7, 10, 2)
        >>> support = Support(x, y, torch.ones(7, 10, dtype=torch.bool))
        >>> maml.adapt(support)["weight"].shape
        torch.Size([7, 2, 3])

    Source:
        Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017). Learned inner rates: Li et
        al., "Meta-SGD" (2017), here one per tensor instead of one per number.
    """

    inner_loop = True

    def __init__(
        self,
        base: nn.Module,
        loss_per_task: TaskLoss = loss_per_task,
        inner_steps: int = 1,
        inner_lr: float = 0.01,
        first_order: bool = False,
        adapted: Selector | Iterable[Selector] = "*",
        learn_inner_lr: bool = False,
        momentum: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.base, self.loss_per_task = base, loss_per_task
        self.inner_steps, self.inner_lr, self.first_order, self.momentum = (
            inner_steps,
            inner_lr,
            first_order,
            momentum,
        )
        self.spec = ParamSpec.of(base, adapted)
        self.log_inner_lr: nn.Parameter | None = None
        if learn_inner_lr:
            self.log_inner_lr = nn.Parameter(torch.full((len(self.spec.shapes),), inner_lr).log())

    def adapt(self, support: Support) -> Params:
        """Take the gradient steps of every task, from the shared initialisation."""
        own = dict(self.base.named_parameters())
        start = Params(
            {
                name: own[name].expand(len(support.mask), *shape)
                for name, shape in self.spec.shapes.items()
            }
        )

        def loss(params: Mapping[str, Tensor]) -> Tensor:
            return masked_loss(
                self.loss_per_task, self.predict(params, support.x), support.y, support.mask
            )

        if self.log_inner_lr is None:
            return self._descend(start, loss, self.inner_lr)
        # Parameters are written as start + u * move, and steps are taken in `move` at rate 1. A
        # gradient step then has rate u² in the parameter, since its gradient has the factor u too;
        # Adam's direction does not depend on the scale of the gradient, so its rate is u.
        units = (self.log_inner_lr if self.momentum else self.log_inner_lr / 2).exp()

        def moved(moves: Mapping[str, Tensor]) -> Params:
            return Params(
                {
                    n: start[n] + unit * move
                    for (n, move), unit in zip(moves.items(), units, strict=True)
                }
            )

        return moved(
            self._descend(start.map(torch.zeros_like), lambda moves: loss(moved(moves)), 1.0)
        )

    def _descend(self, start: Params, loss: Callable[[Params], Tensor], inner_lr: float) -> Params:
        return descend(
            start,
            loss,
            self.inner_steps,
            inner_lr,
            first_order=self.first_order,
            momentum=self.momentum,
        )

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run the base with each task's adapted parameters; all others are shared."""
        return run_per_task(self.base, params, x)


class ANIL(Learner):
    """ANIL: MAML of the head alone; the trunk runs once and is shared by all tasks.

    Args:
        base: A network with a trunk and a head, as `split` takes it.
        loss_per_task: As in `MAML`.
        inner_steps: Gradient steps per task.
        inner_lr: Learning rate of the inner steps.
        **options: Further options of `MAML`, except ``adapted``.

    Raises:
        ConfigError: If ``base`` has no such parts.

    Source:
        Raghu et al., "Rapid learning or feature reuse?" (2020).
    """

    inner_loop = True

    def __init__(
        self,
        base: nn.Module,
        loss_per_task: TaskLoss = loss_per_task,
        inner_steps: int = 5,
        inner_lr: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__()
        self.base, self.loss_per_task = split(base, type(self).__name__), loss_per_task
        self.of_head = MAML(head_of(self.base), loss_per_task, inner_steps, inner_lr, **options)

    def features(self, x: Any) -> Tensor:
        """Features of the shared trunk, (tasks, batch, features)."""
        return run_shared(trunk_of(self.base), x)

    def adapt(self, support: Support) -> Params:
        """Take the gradient steps of every task's head."""
        head = self.of_head.adapt(support._replace(x=self.features(support.x)))
        return Params({f"head.{name}": value for name, value in head.items()})

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run the trunk once on all inputs, then each task's head."""
        return self.of_head.predict(sub(params, "head"), self.features(x))
