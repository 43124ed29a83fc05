"""Losses: outputs and targets per task in, one number per task out.

The caller averages over tasks, and so can weight a task, inspect its loss, or name it in an error.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from weightloom.errors import ShapeError

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Loss function: outputs and targets, each (tasks, ...), to one loss per task, (tasks,)."""


def mse_per_task(
    outputs: Float[Tensor, "tasks batch *out"], targets: Float[Tensor, "tasks batch *out"]
) -> Float[Tensor, " tasks"]:
    """Mean squared error of each task, over its batch and output axes.

    Example:
        >>> import torch
        >>> mse_per_task(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))
        tensor([1., 1.])
    """
    return (outputs - targets).square().flatten(1).mean(1)


def cross_entropy_per_task(
    logits: Float[Tensor, "tasks batch ways"], labels: Int[Tensor, "tasks batch"]
) -> Float[Tensor, " tasks"]:
    """Mean cross-entropy of each task over its batch, in nats.

    Example:
        >>> import torch
        >>> cross_entropy_per_task(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
        tensor([1.3863, 1.3863])
    """
    per_point = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return per_point.view(labels.shape).mean(1)


def soft_cross_entropy_per_task(
    logits: Float[Tensor, "tasks batch classes"], targets: Float[Tensor, "tasks batch classes"]
) -> Float[Tensor, " tasks"]:
    """Mean cross-entropy of each task over its batch, in nats, with distributions as targets.

    Example:
        >>> import torch
        >>> soft_cross_entropy_per_task(torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.25))
        tensor([1.3863, 1.3863])
    """
    per_point = cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none")
    return per_point.view(targets.shape[:2]).mean(1)


def loss_per_task(outputs: Tensor, targets: Tensor) -> Float[Tensor, " tasks"]:
    """Default loss of each task: cross-entropy for integer targets, mean squared error for floats.

    Args:
        outputs: (tasks, batch, *out).
        targets: Labels, (tasks, batch), or values, (tasks, batch, *out).
    """
    return (mse_per_task if targets.is_floating_point() else cross_entropy_per_task)(
        outputs, targets
    )


def masked_loss(
    loss: TaskLoss, outputs: Any, targets: Any, mask: Bool[Tensor, "tasks batch"]
) -> Float[Tensor, " tasks"]:
    """Mean of a loss over the unmasked points of each task; zero for a task without any.

    Targets of masked points, such as a label of -1, are not read.

    Args:
        loss: A mean over the points of a task, like every loss in this module.
        outputs: (tasks, batch, *out).
        targets: Labels, (tasks, batch), or values, (tasks, batch, *out).
        mask: True for real points, False for padding.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[True, False]])
        >>> masked_loss(mse_per_task, torch.tensor([[[1.0], [9.0]]]), torch.zeros(1, 2, 1), mask)
        tensor([1.])
    """

    def points(values: Tensor) -> Tensor:
        return values.flatten(0, 1)[:, None]

    def known(values: Tensor) -> Tensor:
        return points(values.masked_fill(~mask.view(*mask.shape, *[1] * (values.ndim - 2)), 0))

    per_point = loss(tree_map(points, outputs), tree_map(known, targets)).view(mask.shape)
    return per_point.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def loss_of_those_there(
    loss: TaskLoss, outputs: Any, targets: Any, mask: Bool[Tensor, "tasks batch"]
) -> Float[Tensor, " tasks"]:
    """Loss of each task over unmasked points: ``loss`` if no point is masked, else `masked_loss`.

    Without masked points, ``loss`` need not be a mean over points.
    """
    return loss(outputs, targets) if bool(mask.all()) else masked_loss(loss, outputs, targets, mask)


def reconstruction_per_task(
    params: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> Float[Tensor, " tasks"]:
    """Normalised squared error of generated changes against trained ones, as products of factors.

    The mean over parameters of |BA - B*A*|² / |B*A*|²: 0 for the trained change, 1 for no change.
    Products do not depend on the choice of factors, so targets need not be canonical. No product is
    built: ⟨BA, B*A*⟩ = ⟨BᵀB*, A A*ᵀ⟩. Of a value that is not held as low-rank factors, such as a
    bias, the numbers themselves are compared.

    Args:
        params: Generated parameters per task.
        targets: Trained parameters of the same names and, for factors, the same own values.

    Raises:
        ShapeError: If the two name different parameters.

    Example:
        >>> import torch
        >>> from weightloom.forms import Factored, LowRank
        >>> factors = {"up": torch.randn(2, 6, 1), "down": torch.randn(2, 1, 5)}
        >>> trained = {"weight": Factored(LowRank(1), torch.zeros(6, 5), factors)}
        >>> half = {"weight": trained["weight"].map(lambda factor: factor * 0.5**0.5)}
        >>> reconstruction_per_task(half, trained)
        tensor([0.2500, 0.2500])
    """
    if params.keys() != targets.keys():
        raise ShapeError(
            f"`params` and `targets` differ in {sorted(params.keys() ^ targets.keys())}. The error "
            "of each parameter is taken against its own target. Generate the parameters that were "
            "trained, or drop the others."
        )
    errors = [_reconstruction(value, targets[name]) for name, value in params.items()]
    return torch.stack(errors).mean(0)


def _reconstruction(value: Tensor, target: Tensor) -> Tensor:
    """Error of one parameter, (tasks,), in units of its target's squared size."""
    own, its = getattr(value, "factors", {}), getattr(target, "factors", {})
    if own.keys() == its.keys() == {"up", "down"}:
        size = _across(its, its)
        error = _across(own, own) - 2 * _across(own, its) + size
    else:
        error, size = (its.square().flatten(1).sum(1) for its in (value - target, target))
    return error / size.clamp(min=torch.finfo(size.dtype).tiny)


def _across(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner product of two products of factors."""
    return ((a["up"].mT @ b["up"]) * (a["down"] @ b["down"].mT)).sum((-2, -1))
