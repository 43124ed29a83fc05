"""Losses: outputs and targets per task in, one number per task out.

A mean over tasks is the caller's, so that a task can be weighed, named when it goes wrong, or looked at.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


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
    """Mean cross-entropy of each task in nats, over its batch.

    Example:
        >>> import torch
        >>> cross_entropy_per_task(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
        tensor([1.3863, 1.3863])
    """
    per_point = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return per_point.view(labels.shape).mean(1)
