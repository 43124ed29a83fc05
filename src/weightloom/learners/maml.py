"""MAML and ANIL: no hypernetwork, only a start that is learned so that a few gradient steps suffice."""

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
    """Gradient steps on the support set, from the base's own parameters, which are trained through the steps.

    Args:
        base: The base network; its own parameters are where every task starts.
        loss_per_task: Outputs and targets to one loss per task, a mean over its points: of the
            inner and outer loop.
        inner_steps: Gradient steps per task.
        inner_lr: Length of a step.
        first_order: Take the gradients of the inner steps as constants.
        adapted: Which parameters are adapted; the others are shared by all tasks.
        learn_inner_lr: Learn the length of a step, one for each parameter tensor.
        momentum: Decay rates of Adam's moments, for inner steps by Adam. None is plain gradient
            descent.

    Raises:
        ConfigError: If ``adapted`` matches no parameter.

    Example:
        >>> maml = MAML(nn.Linear(3, 2), inner_steps=5)
        >>> support = Support(torch.randn(7, 10, 3), torch.randn(7, 10, 2), torch.ones(7, 10, dtype=torch.bool))
        >>> maml.adapt(support)["weight"].shape
        torch.Size([7, 2, 3])

    Source:
        Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017). Learned lengths: Li et al.,
        "Meta-SGD" (2017), with one per tensor in the place of one per number.
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
        """Take the gradient steps of every task from the same start."""
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
        # A step of length 1 in units of u is one of length u² in the parameter: u once more in the
        # gradient, but Adam's direction has no length.
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
        """Run the base with each task's parameters, and its own for the rest."""
        return run_per_task(self.base, params, x)


class ANIL(Learner):
    """MAML of the head alone: the trunk is run once and is the same for all tasks.

    Args:
        base: A network with a trunk and a head, as `split` takes it.
        loss_per_task: As in `MAML`.
        inner_steps: Gradient steps per task.
        inner_lr: Length of a step.
        **options: Further ones of `MAML`, all but ``adapted``.

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
        """Run the trunk, which is the same for all tasks."""
        return run_shared(trunk_of(self.base), x)

    def adapt(self, support: Support) -> Params:
        """Take the gradient steps of every task's head."""
        head = self.of_head.adapt(support._replace(x=self.features(support.x)))
        return Params({f"head.{name}": value for name, value in head.items()})

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run the trunk once on all inputs, then each task's head."""
        return self.of_head.predict(sub(params, "head"), self.features(x))
