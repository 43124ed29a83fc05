"""The inner loop: Params and a support loss in, Params adapted to each task out.

In:   a base network, Params to start from, the support set.
Out:  Params of the same names and shapes, one gradient descent per task, all tasks at once.
Knows nothing of hypernetworks or of how the result is judged.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.params import Params


def fine_tune(
    base: nn.Module,
    params: Params,
    x: Tensor,
    loss_per_task: Callable[[Tensor], Tensor],
    steps: int,
    inner_lr: float,
) -> Params:
    """Fit the parameters of each task to its support set with Adam; ``params`` and ``base`` are left alone.

    Adam works number by number, so one optimiser over (tasks, *shape) is exactly one optimiser per task. The result
    carries no gradient history.

    Args:
        base: The base network.
        params: Where each task starts, each (tasks, *shape).
        x: Support inputs, (tasks, shots, *event).
        loss_per_task: Outputs, (tasks, shots, *out), to one support loss per task, (tasks,).
        steps: Gradient steps.
        inner_lr: Adam's learning rate.

    Example:
        >>> start = {"weight": torch.zeros(2, 1, 1), "bias": torch.zeros(2, 1)}
        >>> x = torch.ones(2, 1, 1)
        >>> fit = fine_tune(nn.Linear(1, 1), start, x, lambda y: (y - 1).square().mean((1, 2)), 200, 0.05)
        >>> (fit["weight"][:, 0, 0] + fit["bias"][:, 0]).round(decimals=2)
        tensor([1., 1.])
    """
    fitted = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    optimiser = torch.optim.Adam(list(fitted.values()), lr=inner_lr)
    with torch.enable_grad():
        for _ in range(steps):
            losses = loss_per_task(apply_per_task(base, fitted, x))
            gradients = torch.autograd.grad(losses.sum(), list(fitted.values()))
            for value, gradient in zip(fitted.values(), gradients, strict=True):
                value.grad = gradient
            optimiser.step()
    return {name: value.detach() for name, value in fitted.items()}
