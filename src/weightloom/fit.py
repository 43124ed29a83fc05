"""A new task without an encoder: its data in, the condition that suits it best out.

In:   a hypernetwork and a base network, both trained; inputs and a loss of the new tasks.
Out:  condition, (tasks, condition_dim), fitted by gradient while all else is frozen.
Knows nothing of how the hypernetwork was trained, or of what the condition of a known task is made from.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightloom.base import apply_per_task
from weightloom.errors import ShapeError


def fit_condition(
    hyper: nn.Module,
    base: nn.Module,
    x: Tensor,
    loss_per_task: Callable[[Tensor], Tensor],
    steps: int,
    inner_lr: float,
    start: Tensor | None = None,
) -> Tensor:
    """Fit the condition of each new task with Adam; ``hyper`` and ``base`` are left alone, buffers included.

    For tasks that join when training is over, such as new clients of a federation: only ``condition_dim`` numbers per
    task are fitted, so a few points go a long way. Adam works number by number, so all tasks at once is exactly one
    fit per task. Train or eval mode stays as it is. The result carries no gradient history.

    A hypernetwork as it was built gives every task the same parameters, and so no gradient: train it first.

    Args:
        hyper: The hypernetwork, trained.
        base: The base network.
        x: Support inputs of the new tasks, (tasks, shots, *event).
        loss_per_task: Outputs, (tasks, shots, *out), to one support loss per task, (tasks,).
        steps: Gradient steps.
        inner_lr: Adam's learning rate.
        start: Where to start: (condition_dim,) for all tasks, as in ``embedding.table.weight.mean(0)``, or
            (tasks, condition_dim). None starts at zero.

    Returns:
        The condition of each task, (tasks, condition_dim).

    Raises:
        ShapeError: If ``start`` is of another shape.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> base = nn.Linear(1, 1)
        >>> hyper, x = MLPHyperNetwork(base, condition_dim=4), torch.randn(3, 10, 1)
        >>> fit_condition(hyper, base, x, lambda y: (y - 1).square().mean((1, 2)), steps=5, inner_lr=0.01).shape
        torch.Size([3, 4])

    Source:
        Shamsian et al., "Personalized Federated Learning using Hypernetworks" (2021): a client that joins late
        learns its embedding alone.
    """
    condition = _start(hyper, len(x), start)
    buffers = {name: buffer.clone() for name, buffer in hyper.named_buffers()}  # a step may write into them
    optimiser = torch.optim.Adam([condition], lr=inner_lr)
    with torch.enable_grad():
        for _ in range(steps):
            params = functional_call(hyper, buffers, (condition,))
            losses = loss_per_task(apply_per_task(base, params, x))
            (condition.grad,) = torch.autograd.grad(losses.sum(), condition)  # of nothing else
            optimiser.step()
    return condition.detach()


def _start(hyper: nn.Module, tasks: int, start: Tensor | None) -> Tensor:
    """A leaf of its own, (tasks, condition_dim), of the hypernetwork's dtype and device."""
    own = next(parameter for parameter in hyper.parameters() if parameter.is_floating_point())
    width = cast("int", hyper.condition_dim)
    if start is None:
        start = own.new_zeros(tasks, width)
    if start.shape not in ((width,), (tasks, width)):
        raise ShapeError(
            f"`start` has shape {tuple(start.shape)}. There are {tasks} new tasks and a condition is {width} wide. "
            f"Pass one start for all, ({width},), or one for each, ({tasks}, {width})."
        )
    return start.detach().to(own).expand(tasks, width).clone().requires_grad_()
