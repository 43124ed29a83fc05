"""The inner loop: Params and a support loss in, Params adapted to each task out.

In:   a base network, Params to start from, the support set.
Out:  Params of the same names and shapes, one gradient descent per task, all tasks at once.
Knows nothing of hypernetworks or of how the result is judged.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
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
    carries no gradient history. What is held as factors stays so: the factors are fitted, what tasks share is not.

    Args:
        base: The base network.
        params: Where each task starts, each (tasks, *shape).
        x: Support inputs, (tasks, shots, *event).
        loss_per_task: Outputs, (tasks, shots, *out), to one support loss per task, (tasks,).
        steps: Gradient steps.
        inner_lr: Adam's learning rate.

    Raises:
        ConfigError: If ``params`` is empty.

    Example:
        >>> start = {"weight": torch.zeros(2, 1, 1), "bias": torch.zeros(2, 1)}
        >>> x = torch.ones(2, 1, 1)
        >>> fit = fine_tune(nn.Linear(1, 1), start, x, lambda y: (y - 1).square().mean((1, 2)), 200, 0.05)
        >>> (fit["weight"][:, 0, 0] + fit["bias"][:, 0]).round(decimals=2)
        tensor([1., 1.])
    """
    leaves, structure = tree_flatten(params)  # of a parameter that is held as factors: the factors
    if not leaves:
        raise ConfigError(
            "`params` is empty. There is nothing to fit: the base's own parameters are shared by all tasks. "
            "Pass those of each task, as a hypernetwork generates them."
        )
    fitted = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    optimiser = torch.optim.Adam(fitted, lr=inner_lr)
    with torch.enable_grad():
        for _ in range(steps):
            losses = loss_per_task(apply_per_task(base, tree_unflatten(fitted, structure), x))
            for leaf, gradient in zip(fitted, torch.autograd.grad(losses.sum(), fitted), strict=True):
                leaf.grad = gradient
            optimiser.step()
    return dict(tree_unflatten([leaf.detach() for leaf in fitted], structure))
