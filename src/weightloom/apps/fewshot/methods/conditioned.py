"""A network that takes a vector of its task as further inputs: the plainest way to tell it what task it is in."""

import torch
from torch import Tensor, nn

from weightloom.networks import mlp


class Conditioned(nn.Module):
    """Linear layers that read an input and, beside it, ``condition``, which is the same for all inputs of a task.

    Args:
        x_dim: Width of an input.
        y_dim: Width of an output.
        condition_dim: Width of the condition; as a parameter of this module it is zero and not trained.
        hidden: Widths of the layers between.

    Example:
        >>> Conditioned(1, 1, condition_dim=4)(torch.rand(7, 1)).shape
        torch.Size([7, 1])
    """

    def __init__(self, x_dim: int, y_dim: int, condition_dim: int, hidden: tuple[int, ...] = (40, 40)) -> None:
        super().__init__()
        self.condition = nn.Parameter(torch.zeros(condition_dim), requires_grad=False)
        self.net = mlp([x_dim + condition_dim, *hidden, y_dim])

    def forward(self, x: Tensor) -> Tensor:
        """Predict, (batch, x_dim) to (batch, y_dim)."""
        outputs: Tensor = self.net(torch.cat([x, self.condition.expand(len(x), -1)], dim=1))
        return outputs
