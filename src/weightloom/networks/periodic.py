"""Coordinate networks of a field on a circle: the first layer is a set of travelling waves."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError


class PeriodicLayer(nn.Module):
    """Travelling waves, sin(k x + w · t + b), with fixed whole wave numbers k.

    Every function of the layer is exactly periodic in x, with period 2π. Rates w and phases b are
    parameters: generated ones turn the speed of a wave into a product with time, which a shared
    first layer cannot.

    Args:
        units: Number of waves; wave numbers 1 to ``modes`` are repeated in turn.
        modes: Largest wave number.
        others: Coordinates after x, such as 1 for time.

    Raises:
        ConfigError: If a size is below 1.

    Example:
        >>> PeriodicLayer(8)(torch.rand(7, 2)).shape
        torch.Size([7, 8])
    """

    waves: Tensor

    def __init__(self, units: int, modes: int = 8, others: int = 1) -> None:
        super().__init__()
        for name, value in (("units", units), ("modes", modes), ("others", others)):
            if value < 1:
                raise ConfigError(
                    f"`{name}={value}`. A wave travels along x, at a rate of the other "
                    "coordinates, and has a wave number. Pass 1 or more."
                )
        self.register_buffer("waves", torch.arange(units) % modes + 1.0)
        self.rest = nn.Linear(others, units)
        nn.init.normal_(self.rest.weight, std=2.0)
        nn.init.uniform_(self.rest.bias, 0, 2 * math.pi)

    def forward(self, at: Tensor) -> Tensor:
        """Waves at positions, (batch, 1 + others) to (batch, units)."""
        angle: Tensor = self.rest(at[..., 1:]) + self.waves * at[..., :1]
        return angle.sin()


class PeriodicNet(nn.Sequential):
    """Field on a circle, (x, others) to values: a `PeriodicLayer`, then linear layers and GELUs.

    Args:
        hidden: Widths of the layers; the first is the number of waves.
        modes: Largest wave number of the first layer.
        others: Coordinates after x, such as 1 for time.
        outputs: Values at each position.

    Raises:
        ConfigError: If ``hidden`` is empty, or a size is below 1.

    Example:
        >>> PeriodicNet()(torch.rand(7, 2)).shape
        torch.Size([7, 1])

    Source:
        Exact periods by sines of whole wave numbers: Dong and Ni, "A method for representing
        periodic functions and enforcing exactly periodic boundary conditions with deep neural
        networks" (2021), with trained periods there. GELU learns faster here than sines and tanh.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (32, 32, 32),
        modes: int = 8,
        others: int = 1,
        outputs: int = 1,
    ) -> None:
        if not hidden:
            raise ConfigError(
                "`hidden=()` has no layer. The first width is the number of waves. Pass one or "
                "more, as in `hidden=(32, 32)`."
            )
        layers: list[nn.Module] = [PeriodicLayer(hidden[0], modes, others)]
        for inputs, units in pairwise(hidden):
            layers += [nn.Linear(inputs, units), nn.GELU()]
        super().__init__(*layers, nn.Linear(hidden[-1], outputs))
