"""Gradient steps on the data of a task: parameters, or its condition, in; the same, adapted, out.

In:   a base network, initial parameters or an initial condition, a loss on the support set.
Out:  the adapted parameters or condition, one gradient descent per task, all tasks in one batch.
Knows nothing of the evaluation of the result.

`descend` can be differentiated, for the inner loop of a bilevel problem. `fit_params` and
`fit_condition` use Adam after training and cannot.
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
    """Inner loop: differentiable gradient steps per task, for all tasks at once.

    Gradients flow back into ``start``, ``inner_lr`` and the tensors that ``loss_per_task`` uses.
    The loss of a task does not depend on the values of other tasks, so one descent over all tasks
    equals one descent per task.

    Args:
        start: Values to adapt: Params, or one tensor, such as a condition. A parameter held as
            factors stays factored.
        loss_per_task: Maps values like ``start`` to one support loss per task, (tasks,).
        steps: Gradient steps; 0 returns ``start``.
        inner_lr: Learning rate of the steps; a tensor if it is learned.
        first_order: Treat the gradients of the inner steps as constants: cheaper, but only an
            approximation of the outer gradient.
        momentum: Decay rates of Adam's two moments, as in ``(0.9, 0.999)``. None: plain gradient
            descent.
        weight_decay: Decoupled decay per step, multiplied by ``inner_lr``.

    Returns:
        The adapted values, like ``start``; without gradient history under ``torch.no_grad``.

    Example:
        >>> start = {"w": torch.zeros(2, 1, requires_grad=True)}
        >>> goal = torch.tensor([[1.0], [3.0]])
        >>> loss = lambda p: (p["w"] - goal).square().sum(1)
        >>> adapted = descend(start, loss, steps=1, inner_lr=0.25)
        >>> adapted["w"][:, 0]
        tensor([0.5000, 1.5000], grad_fn=<...>)

    Source:
        Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017), equation 1; first order as
        in their section 5.2. With ``momentum``: AdamW, Loshchilov and Hutter (2019), unrolled.
    """
    tracked = torch.is_grad_enabled()
    leaves, structure = tree_flatten(start)
    moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves if momentum]
    with torch.enable_grad():
        leaves = _kept(leaves, tracked)
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
            moved = [kept * leaf - inner_lr * g for leaf, g in zip(leaves, gradients, strict=True)]
            leaves = _kept(moved, tracked)
    return tree_unflatten(leaves, structure)


def _kept(leaves: list[Tensor], tracked: bool) -> list[Tensor]:
    """Keep the gradient history of ``leaves`` only if it is tracked."""
    return leaves if tracked else [leaf.detach() for leaf in leaves]


def _adam(
    gradients: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    decay: tuple[float, float],
    step: int,
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Adam's direction and its new moments, without weight decay.

    The epsilon stands under the root: at zero, the square root has no finite derivative.
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

    ``params`` and ``base`` are not changed. Adam is elementwise, so one optimiser over
    (tasks, *shape) equals one optimiser per task. Of a parameter held as factors, the factors of
    each task are fitted; values shared by all tasks are not.

    Args:
        base: The base network.
        params: Initial parameters, each (tasks, *shape).
        x: Support inputs, (tasks, shots, *event).
        loss_per_task: Maps outputs, (tasks, shots, *out), to one support loss per task, (tasks,).
        steps: Gradient steps.
        inner_lr: Adam's learning rate.

    Returns:
        The fitted parameters, in the form of ``params``, without gradient history.

    Raises:
        ConfigError: If ``params`` is empty.

    Example:
        >>> start = {"weight": torch.zeros(2, 1, 1), "bias": torch.zeros(2, 1)}
        >>> x = torch.ones(2, 1, 1)
        >>> loss = lambda y: (y - 1).square().mean((1, 2))
        >>> fit = fit_params(nn.Linear(1, 1), start, x, loss, steps=200, inner_lr=0.05)
        >>> (fit["weight"][:, 0, 0] + fit["bias"][:, 0]).round(decimals=2)
        tensor([1., 1.])
    """
    leaves, structure = tree_flatten(params)  # a factored parameter contributes its factors
    if not leaves:
        raise ConfigError(
            "`params` is empty. Only parameters per task are fitted; the base's own are shared by "
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
    """Minimise the sum of ``losses`` over ``leaves`` alone, with Adam; return them detached."""
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
    """Fit the condition of each new task with Adam, for a trained hypernetwork.

    For tasks that join after training, such as new clients of a federation: only ``condition_dim``
    numbers per task are fitted, so a few points suffice. Adam is elementwise, so fitting all tasks
    at once equals one fit per task. ``hyper`` and ``base`` keep their parameters, buffers and train
    or eval mode.

    An untrained hypernetwork generates the same parameters from every condition, so the gradient of
    the condition is zero: train it first.

    Args:
        hyper: The trained hypernetwork.
        base: The base network.
        x: Support inputs of the new tasks, (tasks, shots, *event).
        loss_per_task: Maps outputs, (tasks, shots, *out), to one support loss per task, (tasks,).
        steps: Gradient steps.
        inner_lr: Adam's learning rate.
        start: Initial condition: (condition_dim,) for all tasks, as in
            ``embedding.table.weight.mean(0)``, or (tasks, condition_dim). None: zeros.

    Returns:
        The condition of each task, (tasks, condition_dim), without gradient history.

    Raises:
        ShapeError: If ``start`` has neither of these shapes.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> base = nn.Linear(1, 1)
        >>> hyper, x = MLPHyperNetwork(base, condition_dim=4), torch.randn(3, 10, 1)
        >>> loss = lambda y: (y - 1).square().mean((1, 2))
        >>> fit_condition(hyper, base, x, loss, steps=5, inner_lr=0.01).shape
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
    """Initial condition as a leaf, (tasks, condition_dim), in dtype and device of ``hyper``."""
    own = next(parameter for parameter in hyper.parameters() if parameter.is_floating_point())
    width = cast("int", hyper.condition_dim)
    if start is None:
        start = own.new_zeros(tasks, width)
    if start.shape not in ((width,), (tasks, width)):
        raise ShapeError(
            f"`start` has shape {tuple(start.shape)}. `x` holds {tasks} new tasks and a condition "
            f"is {width} wide. Pass one start for all, ({width},), or one for each, ({tasks}, "
            f"{width})."
        )
    return start.detach().to(own).expand(tasks, width).clone().requires_grad_()
