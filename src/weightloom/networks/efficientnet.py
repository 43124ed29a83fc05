"""EfficientNet-Lite0: a small picture network, and its weights from a package.

In:   nothing; or the installed package with weights pretrained on ImageNet.
Out:  `EfficientNetLite0`, pictures to features.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

BLOCKS = (
    (32, 16, 3, 1, 1, 1),
    (16, 24, 3, 2, 6, 2),
    (24, 40, 5, 2, 6, 2),
    (40, 80, 3, 2, 6, 3),
    (80, 112, 5, 1, 6, 3),
    (112, 192, 5, 2, 6, 4),
    (192, 320, 3, 1, 6, 1),
)
"""Stages: channels in and out, kernel, stride of the first block, expansion, blocks."""
FEATURES = 1280
"""Width of the features."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: 3.4 million parameters in 16 blocks.

    Attributes:
        stem: First convolution and all blocks but the last, a `nn.Sequential`.
        tail: Last block, final convolution and average, a `nn.Sequential`.
        features: Width of the features, 1280.

    Example:
        >>> import torch
        >>> EfficientNetLite0().eval()(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1280])

    Source:
        Tan and Le, "EfficientNet" (2019); the Lite variant has ReLU6, no squeeze-and-excitation,
        and a first and last layer of fixed width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = FEATURES
        blocks = [
            InvertedBlock(inner if repeat else wide, inner, kernel, 1 if repeat else stride, expand)
            for wide, inner, kernel, stride, expand, repeats in BLOCKS
            for repeat in range(repeats)
        ]
        self.stem = nn.Sequential(_layer(3, 32, 3, 2), *blocks[:-1])
        self.tail = nn.Sequential(
            blocks[-1],
            _layer(blocks[-1].channels, FEATURES, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features of pictures from 0 to 1: (batch, 3, height, width) to (batch, 1280)."""
        features: Tensor = self.tail(self.stem(x * (255 / 128) - 127 / 128))
        return features


class InvertedBlock(nn.Module):
    """Inverted residual block: widen, convolve each channel by itself, narrow.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        kernel: Size of the kernel.
        stride: Stride; with 1 and equal channels, the input is added to the output.
        expand: Factor on the channels inside; with 1 there is no first layer.

    Source:
        Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018).
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, expand: int
    ) -> None:
        super().__init__()
        wide = channels_in * expand
        self.channels = channels
        self.residual = stride == 1 and channels_in == channels
        self.layers = nn.Sequential()
        if expand > 1:
            self.layers.append(_layer(channels_in, wide, 1))
        self.layers.append(_layer(wide, wide, kernel, stride, groups=wide))
        self.layers.append(_layer(wide, channels, 1, last=nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps, (batch, channels, height, width), smaller by the stride."""
        changed: Tensor = self.layers(x)
        return x + changed if self.residual else changed


def weights_of(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to the names of `EfficientNetLite0`; its classifier is left out.

    Args:
        published: Parameters and statistics by the names of the PyTorch port of EfficientNet.
    """
    names = EfficientNetLite0().state_dict()
    values = [value for name, value in published.items() if not name.startswith("_fc.")]
    return OrderedDict(zip(names, values, strict=True))


def _layer(
    channels_in: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    last: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution of TensorFlow's padding, batch normalisation, ReLU6."""
    before = (kernel - stride) // 2 if stride > 1 else kernel // 2
    after = kernel - stride - before if stride > 1 else kernel // 2
    return nn.Sequential(
        nn.ZeroPad2d((before, after, before, after)) if before != after else nn.Identity(),
        nn.Conv2d(
            *(channels_in, channels, kernel, stride),
            padding=before if before == after else 0,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01),
        nn.ReLU6() if last is None else last,
    )
