"""Ready-made base networks, for those who do not bring their own.

Plain modules: nothing here knows that its parameters may be generated.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


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


class ConvNet(nn.Module):
    """Convolutions that halve the image, then one linear head: ``head(trunk(x))``.

    Normalised per image (`nn.GroupNorm`), so what it says of an image depends on that image alone.

    Args:
        channels_in: Channels of the image.
        size: Height and width of the image, in pixels.
        ways: Rows of the head.
        channels: Channels of every layer.
        blocks: How many times the image is halved.

    Example:
        >>> import torch
        >>> ConvNet(channels_in=1, size=28, ways=5)(torch.rand(7, 1, 28, 28)).shape
        torch.Size([7, 5])
    """

    def __init__(self, channels_in: int, size: int, ways: int, channels: int = 64, blocks: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels_in
        for _ in range(blocks):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.ReLU(), nn.MaxPool2d(2)]
            inputs, size = channels, size // 2
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.features = channels * size * size
        self.head = nn.Linear(self.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, (batch, channels, height, width) to (batch, ways)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits
