"""Images changed at random, for meta-training.

More of what a class can look like than the pool holds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from weightloom.errors import ConfigError


@dataclass(frozen=True)
class Among:
    """Images that are some of many: chance is drawn for the many, so that each changes as it would among all."""

    count: int
    """How many there are in all."""
    rows: Tensor
    """Which of them are here, in order."""

    @classmethod
    def tasks(cls, tasks: int, share: slice, each: int) -> "Among":
        """The images of a share of some tasks, of ``each`` images."""
        return cls(tasks * each, torch.arange(tasks * each).view(tasks, each)[share].flatten())


class Change(ABC):
    """A change of images that is drawn for each of them.

    Of some among many it changes only these.
    """

    @abstractmethod
    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width).

        ``among`` says which they are, None that they are all.
        """

    @property
    def shares(self) -> bool:
        """Whether it can take ``among``."""
        return True


def takes_share(augment: Any) -> bool:
    """Whether images can be changed by a share of them: nothing is done, or a `Change` does it."""
    return augment is None or (isinstance(augment, Change) and augment.shares)


def _count(images: Tensor, among: Among | None) -> int:
    return among.count if among else len(images)


def _own(drawn: Tensor, among: Among | None, axis: int = 0) -> Tensor:
    """What was drawn for the images that are here."""
    return drawn.index_select(axis, among.rows) if among else drawn


@dataclass(frozen=True)
class Jitter(Change):
    """Turn, scale, shear and shift each image a little, each differently; what was outside is 0.

    Example:
        >>> Jitter(1.0)(torch.rand(7, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([7, 1, 8, 8])
    """

    strength: float
    """0 leaves images as they are; 1 is up to 15 degrees, 15 %, 0.15 and a quarter of half the
    image."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width), float."""
        draws = _own(2 * torch.rand(5, _count(images, among), generator=generator) - 1, among, 1)
        angle, scale, shear, right, down = (draws * self.strength).unbind()
        angle, scale, shear = 0.25 * angle, 1 + 0.15 * scale, 0.15 * shear
        top = torch.stack([scale * angle.cos(), shear - angle.sin(), 0.25 * right], dim=1)
        bottom = torch.stack([angle.sin(), scale * angle.cos(), 0.25 * down], dim=1)
        grid = affine_grid(
            torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False
        )
        return grid_sample(images, grid.to(images.dtype), align_corners=False)


@dataclass(frozen=True)
class InTurn(Change):
    """Several changes, one after the other."""

    changes: tuple[Callable[..., Tensor], ...]
    """Each as `Jitter`."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Apply all of them."""
        for change in self.changes:
            images = change(images, generator, *([among] if among else []))
        return images

    @property
    def shares(self) -> bool:
        """Whether all of them can."""
        return all(takes_share(change) for change in self.changes)


@dataclass(frozen=True)
class Flip(Change):
    """Mirror half of the images left to right. For photographs.

    A mirrored character is another character.
    """

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width)."""
        mirrored = (
            _own(torch.rand(_count(images, among), 1, 1, 1, generator=generator), among) < 0.5
        )
        return torch.where(mirrored, images.flip(-1), images)


@dataclass(frozen=True)
class Crop(Change):
    """Shift each image by whole pixels, each differently; what was outside is mirrored or 0.

    Source:
        He et al., "Deep residual learning for image recognition" (2016), section 4.2, which pads
        with 0.
    """

    pad: int = 4
    """The furthest an image moves, in pixels, in either direction."""
    mirrored: bool = True
    """Whether what was outside mirrors what is inside; otherwise it is 0."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width).

        Raises:
            ConfigError: If the images are too small to be mirrored that far.
        """
        height, width = images.shape[-2:]
        if self.pad < 0 or (self.mirrored and self.pad >= min(height, width)):
            raise ConfigError(
                f"`pad={self.pad}` with images of {height}x{width} pixels. An image is mirrored at "
                f"its edge, once. Pass `pad` from 0 to {min(height, width) - 1}."
            )
        padded = pad(images, (self.pad,) * 4, mode="reflect" if self.mirrored else "constant")
        shift = torch.randint(2 * self.pad + 1, (2, _count(images, among), 1), generator=generator)
        down, right = _own(shift, among, 1)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        which, channel = (
            torch.arange(len(images))[:, None, None, None],
            torch.arange(images.shape[1])[:, None, None],
        )
        return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Colour(Change):
    """Change brightness, contrast and saturation of each image a little, each differently.

    Values stay in 0 to 1.
    """

    strength: float = 0.4
    """Each of the three is multiplied by a factor from U(1 - strength, 1 + strength)."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width), float in 0 to 1.

        Grey ones have no saturation to change.
        """
        count = _count(images, among)
        draws = _own(
            2 * torch.rand(3, count, 1, 1, 1, generator=generator, dtype=images.dtype) - 1, among, 1
        )
        brightness, contrast, saturation = (1 + self.strength * draws).unbind()
        images = (images * brightness).clamp(0, 1)
        images = images.mean((1, 2, 3), keepdim=True).lerp(images, contrast).clamp(0, 1)
        return images.mean(1, keepdim=True).lerp(images, saturation).clamp(0, 1)


@dataclass(frozen=True)
class Zoom(Change):
    """Cut a smaller square out of each image, anywhere in it, and enlarge it to the whole.

    Each differently.

    Source:
        Szegedy et al., "Going deeper with convolutions" (2015), section 6: crops of random size,
        here all square.
    """

    smallest: float = 0.7
    """The side of the square is drawn from U(smallest, 1) of the image's."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width), float."""
        count = _count(images, among)
        side = self.smallest + (1 - self.smallest) * _own(
            torch.rand(count, generator=generator), among
        )
        right, down = (1 - side) * (
            2 * _own(torch.rand(2, count, generator=generator), among, 1) - 1
        )
        nought = torch.zeros_like(side)
        rows = torch.stack([side, nought, right, nought, side, down], dim=1).view(-1, 2, 3)
        grid = affine_grid(rows, list(images.shape), align_corners=False).to(images.dtype)
        return grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class CutOut(Change):
    """Paint a square of each image grey, each elsewhere; at an edge only a part of it lies within.

    Source:
        DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout"
        (2017).
    """

    size: int = 10
    """Side of the square, in pixels."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Change images (images, channels, height, width), float in 0 to 1."""
        height, width = images.shape[-2:]
        size = (_count(images, among), 1, 1, 1)
        down = _own(torch.randint(height, size, generator=generator), among)
        right = _own(torch.randint(width, size, generator=generator), among)
        rows = torch.arange(height)[:, None] - down + self.size // 2
        columns = torch.arange(width) - right + self.size // 2
        within = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return images.masked_fill(within, 0.5)
