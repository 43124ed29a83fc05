"""Classification tasks from a pool of labelled images: some classes, some images of each, drawn in bulk."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from weightloom.errors import ConfigError
from weightloom.tasks.tasks import Tasks, TaskSource


@dataclass(frozen=True)
class ImageTasks(TaskSource):
    """Tasks of ``ways`` classes, ``shots`` support images and ``queries`` query images of each.

    Which class gets which label is drawn anew for every task, so that labels carry no meaning from task to task.
    Support images come in the order of their labels; query images too.

    Example:
        >>> pool = torch.rand(6, 20, 1, 8, 8)
        >>> source = ImageTasks(pool, torch.full((6,), 20), ways=3, shots=2, queries=5)
        >>> tasks = source.sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([4, 6, 1, 8, 8]), torch.Size([4, 15]))
    """

    images: Tensor
    """The pool, (classes, most images of a class, channels, height, width): uint8 in 0 to 255, or float."""
    counts: Tensor
    """How many images each class has, (classes,); what lies behind them is never drawn."""
    ways: int
    """Classes per task."""
    shots: int
    """Support images per class."""
    queries: int
    """Query images per class."""
    jitter: float = 0.0
    """How strongly each image is turned, scaled, sheared and shifted at random; 1 is up to 15 degrees, 15 %, 0.15 and
    a quarter of half the image. For meta-training only."""

    def __post_init__(self) -> None:
        classes, fewest = len(self.images), int(self.counts.min())
        if self.ways > classes:
            raise ConfigError(
                f"`ways={self.ways}` but there are {classes} classes to draw from. "
                f"A task takes different classes. Pass `ways` from 2 to {classes}."
            )
        if self.ways < 2:
            raise ConfigError(f"`ways={self.ways}`. There is nothing to tell apart. Pass `ways` from 2 to {classes}.")
        if self.shots < 1 or self.queries < 1:
            raise ConfigError(
                f"`shots={self.shots}` and `queries={self.queries}`. A class needs at least one image to adapt on and "
                "one to be judged on. Pass numbers from 1."
            )
        if self.shots + self.queries > fewest:
            raise ConfigError(
                f"`shots={self.shots}` and `queries={self.queries}` take {self.shots + self.queries} images of a "
                f"class, but the smallest has {fewest}. Support and query never share an image. "
                f"Pass numbers whose sum is at most {fewest}."
            )

    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw classes, then images of each, for all tasks at once."""
        classes, most = self.images.shape[:2]
        drawn = torch.rand(tasks, classes, generator=generator).topk(self.ways).indices
        there = torch.arange(most) < self.counts[drawn][..., None]
        order = torch.rand(tasks, self.ways, most, generator=generator).masked_fill(~there, -1.0)
        picked = order.topk(self.shots + self.queries).indices
        pixels = self.images[drawn[..., None], picked]
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if self.jitter > 0:
            pixels = jittered(pixels.flatten(0, 2), self.jitter, generator).unflatten(0, pixels.shape[:3])
        labels = torch.arange(self.ways)[:, None].expand(tasks, self.ways, -1)
        support, query = pixels[:, :, : self.shots], pixels[:, :, self.shots :]
        return Tasks(
            support.flatten(1, 2),
            labels.expand(-1, -1, self.shots).flatten(1),
            torch.ones(tasks, self.ways * self.shots, dtype=torch.bool),
            query.flatten(1, 2),
            labels.expand(-1, -1, self.queries).flatten(1),
            drawn,
        )


def jittered(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear and shift each image a little, each differently.

    Args:
        images: (images, channels, height, width), float.
        strength: 0 leaves them as they are; 1 is what `ImageTasks.jitter` says.
        generator: Where chance comes from.

    Returns:
        Images of the same shape; what was outside is 0.
    """
    angle, scale, shear, right, down = ((2 * torch.rand(5, len(images), generator=generator) - 1) * strength).unbind()
    angle, scale, shear = 0.25 * angle, 1 + 0.15 * scale, 0.15 * shear
    top = torch.stack([scale * angle.cos(), shear - angle.sin(), 0.25 * right], dim=1)
    bottom = torch.stack([angle.sin(), scale * angle.cos(), 0.25 * down], dim=1)
    grid = affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid.to(images.dtype), align_corners=False)
