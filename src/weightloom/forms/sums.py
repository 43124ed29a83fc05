"""Sum of a shared value and a change per task, with a fast backward pass for any memory layout."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18
"""Elements of a change from which the custom backward pass is faster."""


class _Sum(torch.autograd.Function):
    """own + change; its gradient for ``own`` is summed over tasks in the order of memory."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, change: Tensor) -> Tensor:
        """Add the change to the own value."""
        return own + change

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Sum the gradient over tasks for ``own``; pass it on for ``change``."""
        return sum_of_tasks(gradient), gradient


def sum_of_tasks(x: Tensor) -> Tensor:
    """Sum over the first axis, with the other axes in the order of their strides.

    Torch's own sum reads transposed memory out of order, which is slower.
    """
    order = sorted(range(1, x.ndim), key=x.stride, reverse=True)
    back = [order.index(axis) for axis in range(1, x.ndim)]
    return x.permute(0, *order).sum(0).permute(back)


def add_to_own(own: Tensor, change: Tensor) -> Tensor:
    """Add changes per task, (*lead, *shape), to a shared value, (*shape)."""
    plain = (
        change.ndim != own.ndim + 1
        or change.numel() < LARGE
        or not own.requires_grad
        or own.ndim < 2
    )
    if (
        plain
        or torch.compiler.is_compiling()
        or torch._C._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return own + change
    return _sum(own, change)


_sum: Callable[[Tensor, Tensor], Tensor] = _Sum.apply
