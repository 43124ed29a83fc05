"""A value that all tasks share, plus a change for each.

Quick backwards too, however the gradient lies in memory.
"""

from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18
"""Numbers from which it pays."""


class _Sum(torch.autograd.Function):
    """own + change, whose gradient for ``own`` is summed in the order of memory."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, change: Tensor) -> Tensor:
        """Add."""
        return own + change

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Sum for what is shared, and pass on."""
        return sum_of_tasks(gradient), gradient


def sum_of_tasks(x: Tensor) -> Tensor:
    """Sum over the first axis, the others taken as they lie.

    Torch crosses memory where they are transposed.
    """
    order = sorted(range(1, x.ndim), key=x.stride, reverse=True)
    back = [order.index(axis) for axis in range(1, x.ndim)]
    return x.permute(0, *order).sum(0).permute(back)


def add_to_own(own: Tensor, change: Tensor) -> Tensor:
    """Add changes, (*lead, *shape), to a value that all share, (*shape)."""
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
    ):
        return own + change
    if torch.autograd.forward_ad._current_level >= 0:
        return own + change
    total: Tensor = _Sum.apply(own, change)  # type: ignore[no-untyped-call]
    return total
