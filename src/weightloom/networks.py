"""Ready-made base networks, for those who do not bring their own.

Plain modules: nothing here knows that its parameters may be generated.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them.

    Example:
        >>> mlp([1, 40, 1])
        Sequential(
          (0): Linear(in_features=1, out_features=40, bias=True)
          (1): ReLU()
          (2): Linear(in_features=40, out_features=1, bias=True)
        )
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class ConvTrunk(nn.Module):
    """Convolution blocks that halve the image; the features of the last few are read, flat and side by side.

    Normalised per image (`nn.GroupNorm`), so what it says of an image depends on that image alone.

    Args:
        channels_in: Channels of the image.
        size: Height and width of the image, in pixels.
        channels: Channels of every block.
        blocks: How many times the image is halved.
        levels: How many of the last blocks are read. Early features say less, but say it of any image.
        strided: Halve by a stride of the convolution, which is several times quicker than a maximum over 2x2.

    Raises:
        ConfigError: If the image is too small to be halved so often, or ``levels`` is not from 1 to ``blocks``.
    """

    def __init__(
        self, channels_in: int, size: int, channels: int = 64, blocks: int = 4, levels: int = 1, strided: bool = False
    ) -> None:
        super().__init__()
        smallest = 1 if strided else 2**blocks
        if size < smallest or not 1 <= levels <= blocks:
            raise ConfigError(
                f"`size={size}`, `blocks={blocks}`, `levels={levels}` do not fit together. {blocks} halvings need an "
                f"image of {smallest} pixels or more, and 1 to {blocks} levels can be read. Pass fewer `blocks`."
            )
        self.levels = levels
        self.features = 0
        self.blocks = nn.ModuleList()
        for block in range(blocks):
            convolution = nn.Conv2d(channels if block else channels_in, channels, 3, 2 if strided else 1, padding=1)
            halve = nn.Identity() if strided else nn.MaxPool2d(2)
            self.blocks.append(nn.Sequential(convolution, nn.GroupNorm(1, channels), nn.ReLU(), halve))
            size = (size + 1) // 2 if strided else size // 2
            self.features += channels * size * size if block >= blocks - levels else 0

    def forward(self, x: Tensor) -> Tensor:
        """Read features, (batch, channels, height, width) to (batch, features)."""
        levels: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return torch.cat([level.flatten(1) for level in levels[-self.levels :]], dim=1)


class ConvNet(nn.Module):
    """Convolutions, then one linear head: ``head(trunk(x))``.

    Arguments as for `ConvTrunk`, and ``ways``, the rows of the head.

    Example:
        >>> ConvNet(channels_in=1, size=28, ways=5)(torch.rand(7, 1, 28, 28)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        channels_in: int,
        size: int,
        ways: int,
        channels: int = 64,
        blocks: int = 4,
        levels: int = 1,
        strided: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = ConvTrunk(channels_in, size, channels, blocks, levels, strided)
        self.head = nn.Linear(self.trunk.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, (batch, channels, height, width) to (batch, ways)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits
