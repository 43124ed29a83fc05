"""Gradient steps on the data of a task: parameters, or its condition, in; the same, adapted, out.

In:   a base network, parameters or a condition to start from, a loss of the support set.
Out:  what was adapted, one gradient descent per task, all tasks at once.
Knows nothing of how the result is judged.

`descend` can be differentiated, for the inner loop of a bilevel problem. `fit_params` and
`fit_condition` cannot: they adapt at the end, with Adam.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.params import Params

Start = TypeVar("Start")


def descend(
    start: Start,
    loss_per_task: Callable[[Start], Tensor],
    steps: int,
    inner_lr: float | Tensor,
    *,
    first_order: bool = False,
    momentum: tuple[float, float] | None = None,
    weight_decay: float = 0.0,
) -> Start:
    """Take a few gradient steps per task that can themselves be differentiated.

    The inner loop of a bilevel problem.

    The gradient flows back into ``start``, ``inner_lr`` and whatever ``loss_per_task`` holds. A
    loss of one task says nothing of the numbers of another, so one descent over all tasks is
    exactly one descent per task.

    Args:
        start: What is adapted: Params, or one tensor, such as a condition. What is held as factors
            stays so.
        loss_per_task: What is adapted to one support loss per task, (tasks,).
        steps: Gradient steps; 0 gives ``start`` back.
        inner_lr: Length of a step; a tensor where it is learned.
        first_order: Take the gradients of the inner steps as constants: cheaper, and no longer the
            true gradient.
        momentum: Decay rates of the two moments of Adam, as in ``(0.9, 0.999)``. None is plain
            gradient descent.
        weight_decay: Decoupled decay per step, in units of ``inner_lr``.

    Returns:
        The adapted values; outside of training (``torch.no_grad``) without gradient history.

    Example:
        >>> start = {"w": torch.zeros(2, 1, requires_grad=True)}
        >>> goal = torch.tensor([[1.0], [3.0]])
        >>> adapted = descend(start, lambda p: (p["w"] - goal).square().sum(1), steps=1, inner_lr=0.25)
        >>> adapted["w"][:, 0]
        tensor([0.5000, 1.5000], grad_fn=<...>)

    Source:
        Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017), equation 1; first order as
        in their section 5.2. With ``momentum``: AdamW, Loshchilov and Hutter (2019), unrolled.
    """
    tracked = torch.is_grad_enabled()
    leaves, structure = tree_flatten(start)
    moments = (
        [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves] if momentum else []
    )
    with torch.enable_grad():
        if not tracked:
            leaves = [leaf.detach() for leaf in leaves]
        for step in range(1, steps + 1):
            leaves = [
                leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in leaves
            ]
            losses = loss_per_task(tree_unflatten(leaves, structure))
            second = tracked and not first_order
            gradients: list[Tensor] = list(
                torch.autograd.grad(losses.sum(), leaves, create_graph=second)
            )
            if momentum:
                gradients, moments = _adam(gradients, moments, momentum, step)
            kept = 1 - inner_lr * weight_decay
            leaves = [kept * leaf - inner_lr * g for leaf, g in zip(leaves, gradients, strict=True)]
            if not tracked:
                leaves = [leaf.detach() for leaf in leaves]
    return tree_unflatten(leaves, structure)


def _adam(
    gradients: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    decay: tuple[float, float],
    step: int,
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Turn gradients into Adam's direction.

    The tiny number stands under the root, where it can be differentiated.
    """
    first, second = decay
    moments = [
        (m.lerp(g, 1 - first), v.lerp(g.square(), 1 - second))
        for (m, v), g in zip(moments, gradients, strict=True)
    ]
    scale = 1 / (1 - first**step), 1 / (1 - second**step)
    return [m * scale[0] / (v * scale[1] + 1e-16).sqrt() for m, v in moments], moments


def fit_params(
    base: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    loss_per_task: Callable[[Tensor], Tensor],
    steps: int,
    inner_lr: float,
) -> Params:
    """Fit the parameters of each task to its support set with Adam.

    ``params`` and ``base`` are left alone.

    Adam works number by number, so one optimiser over (tasks, *shape) is exactly one optimiser per
    task. The result carries no gradient history. What is held as factors stays so: the factors are
    fitted, what tasks share is not.

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
        >>> fit = fit_params(nn.Linear(1, 1), start, x, lambda y: (y - 1).square().mean((1, 2)), 200, 0.05)
        >>> (fit["weight"][:, 0, 0] + fit["bias"][:, 0]).round(decimals=2)
        tensor([1., 1.])
    """
    leaves, structure = tree_flatten(params)  # of a parameter that is held as factors: the factors
    if not leaves:
        raise ConfigError(
            "`params` is empty. There is nothing to fit: the base's own parameters are shared by "
            "all tasks. Pass those of each task, as a hypernetwork generates them."
        )
    start = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    fitted = _fitted(
        start,
        lambda its: loss_per_task(apply_per_task(base, tree_unflatten(its, structure), x)),
        steps,
        inner_lr,
    )
    return Params(tree_unflatten(fitted, structure))


def _fitted(
    leaves: list[Tensor], losses: Callable[[list[Tensor]], Tensor], steps: int, inner_lr: float
) -> list[Tensor]:
    """Fit leaves with Adam, and nothing else that the loss holds.

    Return them without gradient history.
    """
    optimiser = torch.optim.Adam(leaves, lr=inner_lr)
    with torch.enable_grad():
        for _ in range(steps):
            for leaf, gradient in zip(
                leaves, torch.autograd.grad(losses(leaves).sum(), leaves), strict=True
            ):
                leaf.grad = gradient
            optimiser.step()
    return [leaf.detach() for leaf in leaves]


def fit_condition(
    hyper: nn.Module,
    base: nn.Module,
    x: Tensor,
    loss_per_task: Callable[[Tensor], Tensor],
    steps: int,
    inner_lr: float,
    start: Tensor | None = None,
) -> Tensor:
    """Fit the condition of each new task with Adam.

    ``hyper`` and ``base`` are left alone, buffers included.

    For tasks that join when training is over, such as new clients of a federation: only
    ``condition_dim`` numbers per task are fitted, so a few points go a long way. Adam works number
    by number, so all tasks at once is exactly one fit per task. Train or eval mode stays as it is.
    The result carries no gradient history.

    A hypernetwork as it was built gives every task the same parameters, and so no gradient: train
    it first.

    Args:
        hyper: The hypernetwork, trained.
        base: The base network.
        x: Support inputs of the new tasks, (tasks, shots, *event).
        loss_per_task: Outputs, (tasks, shots, *out), to one support loss per task, (tasks,).
        steps: Gradient steps.
        inner_lr: Adam's learning rate.
        start: Where to start: (condition_dim,) for all tasks, as in
            ``embedding.table.weight.mean(0)``, or (tasks, condition_dim). None starts at zero.

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
        Shamsian et al., "Personalized Federated Learning using Hypernetworks" (2021): a client that
        joins late learns its embedding alone.
    """
    condition = _start(hyper, len(x), start)
    buffers = {
        name: buffer.clone() for name, buffer in hyper.named_buffers()
    }  # a step may write into them

    def losses(leaves: list[Tensor]) -> Tensor:
        return loss_per_task(apply_per_task(base, functional_call(hyper, buffers, (leaves[0],)), x))

    return _fitted([condition], losses, steps, inner_lr)[0]


def _start(hyper: nn.Module, tasks: int, start: Tensor | None) -> Tensor:
    """A leaf of its own, (tasks, condition_dim), of the hypernetwork's dtype and device."""
    own = next(parameter for parameter in hyper.parameters() if parameter.is_floating_point())
    width = cast("int", hyper.condition_dim)
    if start is None:
        start = own.new_zeros(tasks, width)
    if start.shape not in ((width,), (tasks, width)):
        raise ShapeError(
            f"`start` has shape {tuple(start.shape)}. There are {tasks} new tasks and a condition "
            f"is {width} wide. Pass one start for all, ({width},), or one for each, ({tasks}, "
            f"{width})."
        )
    return start.detach().to(own).expand(tasks, width).clone().requires_grad_()
