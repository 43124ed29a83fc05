"""Images changed at random, for meta-training: more of what a class can look like than the pool holds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


@dataclass(frozen=True)
class Jitter:
    """Turn, scale, shear and shift each image a little, each differently; what was outside is 0.

    Example:
        >>> Jitter(1.0)(torch.rand(7, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([7, 1, 8, 8])
    """

    strength: float
    """0 leaves images as they are; 1 is up to 15 degrees, 15 %, 0.15 and a quarter of half the image."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change images (images, channels, height, width), float."""
        draws = 2 * torch.rand(5, len(images), generator=generator) - 1
        angle, scale, shear, right, down = (draws * self.strength).unbind()
        angle, scale, shear = 0.25 * angle, 1 + 0.15 * scale, 0.15 * shear
        top = torch.stack([scale * angle.cos(), shear - angle.sin(), 0.25 * right], dim=1)
        bottom = torch.stack([angle.sin(), scale * angle.cos(), 0.25 * down], dim=1)
        grid = affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
        return grid_sample(images, grid.to(images.dtype), align_corners=False)


@dataclass(frozen=True)
class InTurn:
    """Several changes, one after the other."""

    changes: tuple[Callable[[Tensor, torch.Generator], Tensor], ...]
    """Each as `Jitter`."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply all of them."""
        for change in self.changes:
            images = change(images, generator)
        return images
