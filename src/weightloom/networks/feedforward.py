"""Ready-made base networks, for those who do not bring their own.

Plain modules: nothing here knows that its parameters may be generated.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError

Norm = Literal["batch", "group", "task"]
"""How images are normalised: by running statistics; each by itself; by those of the images that are
seen together."""


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
    """Convolution blocks that halve the image.

    The features of the last few are read, flat and side by side.

    With ``norm="group"`` what it says of an image depends on that image alone.

    Args:
        channels_in: Channels of the image.
        size: Height and width of the image, in pixels.
        channels: Channels of every block.
        blocks: How many times the image is halved.
        levels: How many of the last blocks are read. Early features say less, but say it of any
            image.
        strided: Halve by a stride of the convolution, which is several times quicker than a maximum
            over 2x2.
        norm: How images are normalised.

    Raises:
        ConfigError: If the image is too small to be halved so often, or ``levels`` is not from 1 to
            ``blocks``.
    """

    def __init__(
        self,
        channels_in: int,
        size: int,
        channels: int = 64,
        blocks: int = 4,
        levels: int = 1,
        strided: bool = False,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        smallest = 1 if strided else 2**blocks
        if size < smallest or not 1 <= levels <= blocks:
            raise ConfigError(
                f"`size={size}`, `blocks={blocks}`, `levels={levels}` do not fit together. "
                f"{blocks} halvings need an image of {smallest} pixels or more, and 1 to {blocks} "
                "levels can be read. Pass fewer `blocks`."
            )
        self.levels = levels
        self.features = 0
        self.blocks = nn.ModuleList()
        for block in range(blocks):
            convolution = nn.Conv2d(
                channels if block else channels_in, channels, 3, 2 if strided else 1, padding=1
            )
            halve = nn.Identity() if strided else nn.MaxPool2d(2)
            self.blocks.append(
                nn.Sequential(convolution, norm_of(channels, norm), nn.ReLU(), halve)
            )
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
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        self.trunk = ConvTrunk(channels_in, size, channels, blocks, levels, strided, norm)
        self.head = nn.Linear(self.trunk.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, (batch, channels, height, width) to (batch, ways)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits


class ResidualTrunk(nn.Module):
    """Blocks that halve the image, each but the last with a residual pair of convolutions.

    The last map is read, flat.

    Narrow where the image is large and wide where it is small, so most of the work is done on few
    positions.

    Args:
        channels_in: Channels of the image.
        size: Height and width of the image, in pixels.
        channels: Channels of each block.
        norm: How it is normalised.
        last_pair: Whether the last block has a residual pair too.
        unit: Whether features are centred and brought to one length, as `UnitLength` does.

    Source:
        He et al., "Deep residual learning for image recognition" (2016): the pair, its second norm
        before the sum.
    """

    def __init__(
        self,
        channels_in: int,
        size: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        norm: Norm = "batch",
        last_pair: bool = False,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for number, width in enumerate(channels):
            block = nn.Sequential(
                nn.Conv2d(channels_in, width, 3, 2, 1, bias=False), norm_of(width, norm), nn.ReLU()
            )
            if last_pair or number + 1 < len(channels):
                block.append(ResidualPair(width, norm))
            self.blocks.append(block)
            channels_in, size = width, (size + 1) // 2
        self.channels, self.features = channels_in, channels_in * size * size
        self.last = UnitLength(self.features) if unit else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Read features, (batch, channels, height, width) to (batch, features), channel by channel."""
        features: Tensor = self.last(self.blocks(x).flatten(1))
        return features


class UnitLength(nn.Module):
    """Subtract the mean of all features seen in training, then bring what is left to the length √features.

    Args:
        features: Width of the features.
        speed: Share of a batch in the running mean.

    Source:
        Wang et al., "SimpleShot" (2019), its CL2N, with a running mean in the place of that of all
        training classes.
    """

    centre: Tensor

    def __init__(self, features: int, speed: float = 0.01) -> None:
        super().__init__()
        self.speed = speed
        self.register_buffer("centre", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Centre and scale, (batch, features)."""
        x = x.float()
        if self.training:
            self.centre.lerp_(x.detach().mean(0), self.speed)
        return nn.functional.normalize(x - self.centre, dim=-1) * x.shape[-1] ** 0.5


class ResidualPair(nn.Module):
    """Two convolutions whose result is added to what came in.

    Args:
        channels: In and out.
        norm: How it is normalised.
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            norm_of(channels, norm),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            norm_of(channels, norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the change, then cut at zero."""
        return nn.functional.relu(x + self.change(x))


def norm_of(channels: int, norm: Norm) -> nn.Module:
    """Build a normalisation for images.

    Raises:
        ConfigError: If ``norm`` is unknown.
    """
    if norm == "group":
        return nn.GroupNorm(1, channels)
    if norm in ("batch", "task"):
        return nn.BatchNorm2d(channels, track_running_stats=norm == "batch")
    raise ConfigError(
        f'`norm={norm!r}` is unknown. It says how images are normalised. Pass "batch", "group" or "task".'
    )


class FeatureTrunk(nn.Module):
    """Given features, and what two layers make of them, added, at unit length.

    At the start the features themselves.

    Args:
        features: Width of the features.
        hidden: Width of the layer between.
        dropout: Share of the hidden numbers that is dropped in training.
    """

    def __init__(self, features: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = features
        last = nn.Linear(hidden, features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.change = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Dropout(dropout), last
        )

    def forward(self, x: Tensor) -> Tensor:
        """Change features, (batch, features)."""
        return nn.functional.normalize(x + self.change(x), dim=-1)


class TrunkNet(nn.Module):
    """Any trunk, then one linear head: ``head(trunk(x))``.

    Args:
        trunk: A network whose ``features`` says how many numbers it gives.
        ways: Rows of the head.

    Example:
        >>> TrunkNet(ResidualTrunk(channels_in=1, size=28), ways=5)(torch.rand(7, 1, 28, 28)).shape
        torch.Size([7, 5])
        >>> TrunkNet(FeatureTrunk(features=384), ways=5)(torch.rand(7, 384)).shape
        torch.Size([7, 5])
    """

    def __init__(self, trunk: ResidualTrunk | FeatureTrunk | ConvTrunk, ways: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(trunk.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Classify, (batch, *event) to (batch, ways)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits
