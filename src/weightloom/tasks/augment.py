"""Random image augmentations for meta-training: jitter, flip, crop, colour, zoom, cutout."""

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
    """Position of some images within a larger batch that several processes share.

    Random numbers are drawn for the whole batch, so each image changes as it would in one process.
    """

    count: int
    """Images in the whole batch."""
    rows: Tensor
    """Index in the whole batch of each image at hand, ascending."""

    @classmethod
    def tasks(cls, tasks: int, share: slice, each: int) -> "Among":
        """Return the positions of the images of a share of tasks, with ``each`` images per task."""
        return cls(tasks * each, torch.arange(tasks * each).view(tasks, each)[share].flatten())


class Change(ABC):
    """Random augmentation that is drawn for each image separately."""

    @abstractmethod
    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width).

        Args:
            images: Images, (images, channels, height, width), float.
            generator: Source of randomness.
            among: Position of the images in a larger batch. None: they are the whole batch.
        """

    @property
    def shares(self) -> bool:
        """True if the augmentation accepts ``among``."""
        return True


def takes_share(augment: Any) -> bool:
    """Return True if ``augment`` can be applied to a share of a batch: None, or a `Change`."""
    return augment is None or (isinstance(augment, Change) and augment.shares)


def _count(images: Tensor, among: Among | None) -> int:
    return among.count if among else len(images)


def _own(drawn: Tensor, among: Among | None, axis: int = 0) -> Tensor:
    """Select the random numbers of the images at hand."""
    return drawn.index_select(axis, among.rows) if among else drawn


@dataclass(frozen=True)
class Jitter(Change):
    """Random small rotation, scaling, shear and shift of each image, padded with 0.

    Example:
        >>> Jitter(1.0)(torch.rand(7, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([7, 1, 8, 8])
    """

    strength: float
    """Factor on the ranges, 0 or more. 1 rotates by up to 0.25 rad (14 degrees), scales by up to
    15 %, shears by up to 0.15 and shifts by up to 1/8 of the image; 0 has no effect."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width), float."""
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
    """Several augmentations, applied in order."""

    changes: tuple[Callable[..., Tensor], ...]
    """Augmentations, called as ``change(images, generator)``, or as `Change`."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the images after all changes."""
        for change in self.changes:
            images = change(images, generator, *([among] if among else []))
        return images

    @property
    def shares(self) -> bool:
        """True if every change accepts ``among``."""
        return all(takes_share(change) for change in self.changes)


@dataclass(frozen=True)
class Flip(Change):
    """Horizontal mirroring of each image with probability 1/2.

    For photographs; a mirrored character is another character.
    """

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width)."""
        mirrored = (
            _own(torch.rand(_count(images, among), 1, 1, 1, generator=generator), among) < 0.5
        )
        return torch.where(mirrored, images.flip(-1), images)


@dataclass(frozen=True)
class Crop(Change):
    """Random shift of each image by whole pixels, padded by mirroring or with 0.

    Source:
        He et al., "Deep residual learning for image recognition" (2016), section 4.2, which pads
        with 0.
    """

    pad: int = 4
    """Maximum shift in each direction, in pixels."""
    mirrored: bool = True
    """Pad by mirroring at the edge. False pads with 0."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width).

        Raises:
            ConfigError: If ``pad`` is negative or, with mirroring, not smaller than the images.
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
        image = torch.arange(len(images))[:, None, None, None]
        channel = torch.arange(images.shape[1])[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Colour(Change):
    """Random brightness, contrast and saturation of each image, clamped to 0 to 1."""

    strength: float = 0.4
    """Half width of the range: each of the three factors is from U(1 - strength, 1 + strength)."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width), float in 0 to 1.

        The saturation of grey images does not change.
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
    """Random square crop of each image, enlarged to the full size.

    Source:
        Szegedy et al., "Going deeper with convolutions" (2015), section 6: crops of random size,
        here all square.
    """

    smallest: float = 0.7
    """Minimum side of the crop as a fraction of the image's; drawn from U(smallest, 1)."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width), float."""
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
    """Grey square at a random place of each image; at an edge part of it is cut off.

    Source:
        DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout"
        (2017).
    """

    size: int = 10
    """Side of the square, in pixels."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, among: Among | None = None
    ) -> Tensor:
        """Return the changed images, (images, channels, height, width), float in 0 to 1."""
        height, width = images.shape[-2:]
        size = (_count(images, among), 1, 1, 1)
        down = _own(torch.randint(height, size, generator=generator), among)
        right = _own(torch.randint(width, size, generator=generator), among)
        rows = torch.arange(height)[:, None] - down + self.size // 2
        columns = torch.arange(width) - right + self.size // 2
        within = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return images.masked_fill(within, 0.5)
