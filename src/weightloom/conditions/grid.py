"""Encode a support set of points on a line, in a plane or in space through a grid of cells."""

from collections.abc import Sequence
from itertools import pairwise, product

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightloom.conditions.support import checked_points
from weightloom.errors import ConfigError


class GridEncoder(nn.Module):
    """Distribute the support points over a grid of cells, and encode the grid with linear layers.

    Each point is shared among the cells around it by linear interpolation between their centres. A
    cell holds its share of the points, and the mean of their targets. Points outside the grid are
    moved to its edge. The condition is independent of the order of the points. An empty set is a
    grid of zeros, whose condition is a learned prior.

    Args:
        x_dim: Width of an input, which is the number of axes of the grid.
        y_dim: Width of a target.
        condition_dim: Width of the condition.
        size: Cells along each axis.
        low: Lower end of every axis.
        high: Upper end of every axis.
        hidden: Widths of the hidden layers.

    Raises:
        ConfigError: If ``size`` is below 2, or ``low`` not below ``high``.

    Example:
        >>> encode = GridEncoder(x_dim=2, y_dim=1, condition_dim=8, size=28)
        >>> encode(torch.rand(5, 10, 2), torch.randn(5, 10, 1)).shape
        torch.Size([5, 8])

    Source:
        Gordon et al., "Convolutional conditional neural processes" (2020), section 4: a density
        channel in addition to the values. Theirs spreads a point by a Gaussian and encodes the grid
        with convolutions, which are translation equivariant.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        condition_dim: int,
        size: int = 16,
        low: float = -1.0,
        high: float = 1.0,
        hidden: Sequence[int] = (512, 512),
    ) -> None:
        super().__init__()
        if size < 2 or not low < high:
            raise ConfigError(
                f"`size={size}`, `low={low:g}`, `high={high:g}` make no grid. A grid has two cells "
                "or more along each axis, between two ends. Pass a `size` of 2 or more, and `low` "
                "below `high`."
            )
        self.x_dim, self.y_dim, self.condition_dim = x_dim, y_dim, condition_dim
        self.size, self.low, self.high = size, low, high
        layers: list[nn.Module] = []
        widths = [(y_dim + 1) * size**x_dim, *hidden]
        for width, units in pairwise(widths):
            layers += [nn.Linear(width, units), nn.ReLU()]
        self.read = nn.Sequential(*layers, nn.Linear(widths[-1], condition_dim))

    def forward(
        self,
        support_x: Float[Tensor, "tasks shots x_dim"],
        support_y: Float[Tensor, "tasks shots y_dim"],
        support_mask: Bool[Tensor, "tasks shots"] | None = None,
    ) -> Float[Tensor, "tasks condition_dim"]:
        """Encode one support set per task.

        Args:
            support_x: Inputs.
            support_y: Targets.
            support_mask: True for real points, False for padding. None: all are real.

        Raises:
            ShapeError: If their shapes disagree, or a width differs from that of construction.
        """
        points, mask = checked_points(support_x, support_y, support_mask, self.x_dim, self.y_dim)
        x, y = points.split([self.x_dim, self.y_dim], dim=2)
        grid = self.spread(x, torch.cat([mask[..., None].to(y.dtype), y], dim=2))
        grid = torch.cat([grid[..., :1], grid[..., 1:] / grid[..., :1].clamp(min=1)], dim=2)
        condition: Tensor = self.read(grid.mT.flatten(1))
        return condition

    def spread(
        self, x: Float[Tensor, "tasks shots x_dim"], values: Float[Tensor, "tasks shots count"]
    ) -> Float[Tensor, "tasks cells count"]:
        """Sum ``values`` at positions ``x`` into the cells around them, by linear interpolation.

        Cells are in row-major order: the last coordinate of ``x`` varies fastest.
        """
        place = ((x - self.low) / (self.high - self.low) * self.size - 0.5).clamp(0, self.size - 1)
        first = place.detach().floor().clamp(max=self.size - 2)
        share, strides = (
            place - first,
            self.size ** torch.arange(self.x_dim, device=x.device).flip(0),
        )
        grid = values.new_zeros(x.shape[0], self.size**self.x_dim, values.shape[2])
        for corner in product((0, 1), repeat=self.x_dim):
            side = torch.tensor(corner, device=x.device)
            weight = torch.where(side == 1, share, 1 - share).prod(2, keepdim=True)
            cell = ((first.long() + side) * strides).sum(2, keepdim=True)
            grid = grid.scatter_add(1, cell.expand_as(values), weight * values)
        return grid
