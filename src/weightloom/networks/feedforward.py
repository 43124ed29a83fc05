"""Ready-made base networks: MLPs, convolutional and residual networks, and their heads.

Plain modules, which work with their own parameters or with generated ones.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError

Norm = Literal["batch", "group", "task"]
"""Normalisation of images: ``"batch"`` by running statistics, ``"group"`` each image by itself,
``"task"`` by the statistics of the images in one call."""


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Multilayer perceptron: linear layers with an activation between them.

    Args:
        sizes: Widths of the input, of each hidden layer and of the output.
        activation: Class of the activation, built without arguments.

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
    """Convolution blocks that halve the image; returns the features of the last blocks, flattened.

    With ``norm="group"`` the features of an image do not depend on other images.

    Args:
        channels_in: Channels of the image.
        size: Height and width of the image, in pixels.
        channels: Channels of every block.
        blocks: Number of blocks, each of which halves the image.
        levels: Number of last blocks whose features are returned. Earlier features are less
            informative but apply to any image.
        strided: Halve by the stride of the convolution, several times faster than 2x2 max pooling.
        norm: Normalisation of images.

    Raises:
        ConfigError: If the image is too small for ``blocks`` halvings, or ``levels`` is not from 1
            to ``blocks``.
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
                f"{blocks} halvings need an image of {smallest} pixels or more, and `levels` is 1 "
                f"to {blocks}. Pass fewer `blocks`."
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
        """Features of images: (batch, channels, height, width) to (batch, features)."""
        levels: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return torch.cat([level.flatten(1) for level in levels[-self.levels :]], dim=1)


class ConvNet(nn.Module):
    """Convolutional classifier: `ConvTrunk`, then one linear head.

    Arguments as for `ConvTrunk`, and ``ways``, the number of classes.

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
    """Small residual network: one block per width in ``channels``, each halving the image.

    Every block but the last also has a `ResidualPair`. The last feature map is returned, flattened
    channel by channel. Channels grow as the image shrinks, so most of the work is done at low
    resolution.

    Args:
        channels_in: Channels of the image.
        size: Height and width of the image, in pixels.
        channels: Channels of each block.
        norm: Normalisation of images.
        last_pair: Give the last block a residual pair too.

    Source:
        He et al., "Deep residual learning for image recognition" (2016): the pair, with its second
        norm before the sum.
    """

    def __init__(
        self,
        channels_in: int,
        size: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        norm: Norm = "batch",
        last_pair: bool = False,
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

    def forward(self, x: Tensor) -> Tensor:
        """Features of images: (batch, channels, height, width) to (batch, features)."""
        features: Tensor = self.blocks(x).flatten(1)
        return features


class UnitLength(nn.Module):
    """Subtract a running mean of the features, then scale each row to the length √features.

    The mean is updated in train mode only. The output is float32 or finer.

    Args:
        features: Width of the features.
        speed: Weight of a batch in the running mean; first batches weigh more, as in a plain mean.

    Source:
        Wang et al., "SimpleShot" (2019), CL2N, with a running mean instead of the mean of all
        training classes.
    """

    centre: Tensor
    batches: Tensor

    def __init__(self, features: int, speed: float = 0.01) -> None:
        super().__init__()
        self.speed = speed
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("batches", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Centre and scale features, (*batch, features)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training:
            self.batches += 1
            weight = (1 / self.batches).clamp(min=self.speed)
            self.centre += weight * (x.detach().flatten(0, -2).mean(0) - self.centre)
        return nn.functional.normalize(x - self.centre, dim=-1) * math.sqrt(x.shape[-1])


class UnitTrunk(nn.Module):
    """Trunk whose features are centred and scaled to one length, by `UnitLength`.

    Args:
        trunk: Any network with features (batch, features).
        features: Width of the features.

    Example:
        >>> UnitTrunk(mlp([3, 4]), features=4)(torch.rand(7, 3)).square().mean(1).detach()
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 1.0000])
    """

    def __init__(self, trunk: nn.Module, features: int) -> None:
        super().__init__()
        self.trunk, self.last, self.features = trunk, UnitLength(features), features
        # Channels of the last feature map, of trunks that tell them.
        self.channels = getattr(trunk, "channels", None)

    def forward(self, x: Any) -> Tensor:
        """Features of mean square 1, (batch, features)."""
        features: Tensor = self.last(self.trunk(x))
        return features


class ResidualPair(nn.Module):
    """Residual block: two convolutions, added to their input, then a ReLU.

    Args:
        channels: Channels of input and output.
        norm: Normalisation of images.
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
        """Feature maps of the same shape, (batch, channels, height, width)."""
        return nn.functional.relu(x + self.change(x))


def norm_of(channels: int, norm: Norm) -> nn.Module:
    """Build the normalisation layer for feature maps.

    Args:
        channels: Channels of the feature map.
        norm: Kind of normalisation.

    Raises:
        ConfigError: If ``norm`` is unknown.
    """
    if norm == "group":
        return nn.GroupNorm(1, channels)
    if norm in ("batch", "task"):
        return nn.BatchNorm2d(channels, track_running_stats=norm == "batch")
    raise ConfigError(
        f"`norm={norm!r}` is unknown. It is the normalisation of images. "
        'Pass "batch", "group" or "task".'
    )


class FeatureTrunk(nn.Module):
    """Trunk over precomputed features: x plus a two-layer change of x, scaled to unit length.

    The change starts at zero.

    Args:
        features: Width of the features.
        hidden: Width of the hidden layer.
        dropout: Dropout rate of the hidden layer.
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
        """Changed features of unit length, (batch, features)."""
        return nn.functional.normalize(x + self.change(x), dim=-1)


class TrunkNet(nn.Module):
    """Classifier of a trunk and one linear head: ``head(trunk(x))``.

    Args:
        trunk: A network whose attribute ``features`` is the width of its output.
        ways: Number of classes.

    Example:
        >>> TrunkNet(ResidualTrunk(channels_in=1, size=28), ways=5)(torch.rand(7, 1, 28, 28)).shape
        torch.Size([7, 5])
        >>> TrunkNet(FeatureTrunk(features=384), ways=5)(torch.rand(7, 384)).shape
        torch.Size([7, 5])
    """

    def __init__(self, trunk: nn.Module, ways: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(cast("int", trunk.features), ways)

    def forward(self, x: Tensor) -> Tensor:
        """Classify, (batch, *event) to (batch, ways)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits
