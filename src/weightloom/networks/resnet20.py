"""ResNet-20 for 32x32 pictures, with the weights of its training on CIFAR-10.

In:   the file ``resnet20_cifar10.npz``, 97 arrays by the names of the state dict.
Out:  `ResNet20`: pictures to logits of ten classes, or to the pooled features of its stages.
Knows nothing of hypernetworks or of the task data.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from weightloom.datasets import needed_file
from weightloom.errors import DataError, ShapeError

FOLDER, FILE = "resnet20_cifar10", "resnet20_cifar10.npz"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Classes of CIFAR-10, in the order of the logits."""
SIZE = 32
"""Height and width of a picture, in pixels."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue that the weights were trained with."""
WIDTHS = (16, 32, 64)
"""Channels of the three stages."""


class ResNet20(nn.Module):
    """ResNet-20 of CIFAR: three stages of three blocks, shortcuts without parameters.

    Newly initialised; `load_resnet20` reads trained weights.

    Args:
        classes: Number of outputs.

    Example:
        >>> ResNet20()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        He et al., "Deep residual learning for image recognition" (2016), section 4.2, option A: a
        shortcut to more channels takes every second pixel and pads the channels with zeros, here
        half of them on each side as in the weights' own code.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2])
        self.linear = nn.Linear(WIDTHS[2], classes)

    def features(
        self, x: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 32"], Float[Tensor, "batch 64"]]:
        """Pooled features of the second and third stage.

        Args:
            x: Pictures, red, green and blue from 0 to 1.

        Returns:
            Means over pixels of the outputs of both stages, none below 0.
        """
        x = relu(self.bn1(self.conv1((x - self.mean) / self.deviation)))
        middle = self.layer2(self.layer1(x))
        return middle.mean((2, 3)), self.layer3(middle).mean((2, 3))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of pictures whose red, green and blue are from 0 to 1."""
        logits: Tensor = self.linear(self.features(x)[1])
        return logits


class Block(nn.Module):
    """Residual block of two convolutions.

    Args:
        channels: Channels in.
        width: Channels out; if there are more than come in, height and width are halved.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if channels == width else 2
        self.padded = (width - channels) // 2
        self.conv1 = nn.Conv2d(channels, width, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, width, height / stride, width / stride)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, ::2, ::2]
            none = torch.zeros_like(x[:, : self.padded])
            x = torch.cat([none, x, none], dim=1)  # `pad` would not run folded over tasks
        return relu(y + x)


def load_resnet20() -> ResNet20:
    """Load ResNet-20 as trained on CIFAR-10: 269,722 numbers, published test error 8.27 %.

    The file ``resnet20_cifar10.npz`` is read from the first folder of
    ``searched_folders("resnet20_cifar10")`` that contains it.

    Returns:
        The network in eval mode, its parameters free to be trained.

    Raises:
        DataError: If the file is in none of the searched folders, or holds other arrays.

    Source:
        Idelbayev, "Proper ResNet implementation for CIFAR10/CIFAR100 in PyTorch",
        github.com/akamaster/pytorch_resnet_cifar10, BSD-2-Clause.
    """
    path = needed_file(
        FOLDER,
        FILE,
        "The file of ResNet-20",
        "It holds the 97 arrays of github.com/akamaster/pytorch_resnet_cifar10, "
        "`pretrained_models/resnet20-12fca82f.th`, by the names of the state dict without "
        "`module.`.",
    )
    network = ResNet20()
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays: Mapping[str, Tensor] = {
                name: torch.from_numpy(np.asarray(file[name])) for name in file.files
            }
        network.load_state_dict(arrays)
    except Exception as error:  # numpy, zipfile, zlib and torch raise many types for a bad file
        raise DataError(
            f"`{path}` cannot be read as ResNet-20 ({str(error) or type(error).__name__}). It is "
            "damaged, or another file of that name: the 97 arrays of a state dict belong in it. "
            "Put a whole copy in its place."
        ) from error
    return network.eval()


def as_colour(pictures: Tensor) -> Tensor:
    """Scale pictures to the size and the three channels that `ResNet20` reads.

    Args:
        pictures: Grey or coloured pictures from 0 to 255, (batch, channels, height, width).

    Returns:
        (batch, 3, 32, 32), from 0 to 1; a grey picture stands in all three channels.

    Raises:
        ShapeError: If the pictures have neither one nor three channels.

    Example:
        >>> as_colour(torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)).shape
        torch.Size([2, 3, 32, 32])
    """
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        raise ShapeError(
            f"`pictures` has shape {tuple(pictures.shape)}. ResNet-20 reads (batch, channels, "
            "height, width) with three channels, and a grey one is repeated. Pass grey pictures as "
            "`pictures[:, None]`."
        )
    x = pictures.float() / 255
    if x.shape[-2:] != (SIZE, SIZE):
        x = interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return x.expand(-1, 3, -1, -1)


def _stage(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, width), Block(width, width), Block(width, width))
