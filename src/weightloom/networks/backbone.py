"""Backbones: picture networks in two parts, and trunks over several views of a picture.

In:   pictures, or activations that a backbone's stem computed of them once.
Out:  features.
"""

from collections.abc import Callable

from torch import Tensor, nn

from weightloom.networks.feedforward import UnitLength


class Backbone(nn.Module):
    """Frozen picture network: a stem, run once for each picture, then a tail.

    The tail may be changed per task, so it is run again for each; its parameters are frozen too.

    Args:
        name: Name for messages and caches.
        stem: Pictures from 0 to 1, (batch, channels, size, size), to activations, (batch, *event).
        tail: Activations to features, (batch, features).
        features: Width of the features.
        size: Height and width that pictures are scaled to, in pixels.
        about: Name, source and licence in a sentence, for the user.
        classify: Function from features to logits of the classes that the network was trained on,
            which tells which of a user's classes it knows. None if there is none.

    Example:
        >>> import torch
        >>> stem, tail = nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> Backbone("tiny", stem, tail, features=4, size=8)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        name: str,
        stem: nn.Module,
        tail: nn.Module,
        features: int,
        size: int,
        about: str = "",
        classify: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.features, self.size, self.about = name, features, size, about
        self.stem, self.tail, self.classify = stem, tail, classify
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: statistics of a frozen network do not change."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of pictures from 0 to 1: (batch, channels, size, size) to (batch, features)."""
        features: Tensor = self.tail(self.stem(x))
        return features


class ViewsTrunk(nn.Module):
    """Trunk over several views of a picture: the mean feature of a frozen tail over its views.

    Args:
        tail: Activations of one view to features, (batch, *event) to (batch, features); frozen.
            None for views that are features already.
        features: Width of the features.
        unit: Centre features and scale them to one length, by `UnitLength`.
        centre: Mean feature of training pictures, (features,); None for zeros.

    Example:
        >>> import torch
        >>> ViewsTrunk(None, features=8)(torch.rand(5, 3, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        tail: nn.Module | None,
        features: int,
        unit: bool = False,
        centre: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.tail = nn.Identity() if tail is None else tail
        self.tail.requires_grad_(False).eval()
        self.last = UnitLength(features) if unit else nn.Identity()
        if isinstance(self.last, UnitLength) and centre is not None:
            self.last.centre.copy_(centre)
        self.eval()

    def train(self, mode: bool = True) -> "ViewsTrunk":
        """Stay in eval mode: statistics and centre of a frozen network do not change."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of pictures given as views: (batch, views, *event) to (batch, features)."""
        of_views = self.tail(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        features: Tensor = self.last(of_views.mean(1))
        return features
