"""Cameras with crossed wires: labelled pictures, each task seen through a faulty camera that nobody has met.

A made fault on real pictures. It stands for arrays of sensors, electrodes or antennas that were
wired, mounted or calibrated each in its own way.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.tasks.augment import Among, takes_share
from weightloom.tasks.classes import Augment
from weightloom.tasks.tasks import ALL, Tasks, TaskSource

LOG_GAIN, OFFSET = 1.1, 1.0
"""Gains are exp U(-1.1, 1.1), offsets U(-1, 1)."""
UNLABELLED = -1
"""Label of a support picture of which nobody says what it shows."""


class Cameras(NamedTuple):
    """Faulty cameras: a picture x goes in, and the wires send v = weight x + offset."""

    weight: Float[Tensor, "tasks wires pixels"]
    offset: Float[Tensor, "tasks wires"]

    def send(
        self, pictures: Float[Tensor, "tasks pictures pixels"]
    ) -> Float[Tensor, "tasks pictures wires"]:
        """Return what the wires of each camera send of its pictures."""
        return torch.baddbmm(self.offset[:, None], pictures, self.weight.mT)


def sample_cameras(
    tasks: int, pixels: int, generator: torch.Generator, crosstalk: float = 0.0, share: slice = ALL
) -> Cameras:
    """Draw cameras whose wires are permuted, half of them negative, each with its own gain and offset.

    Args:
        tasks: How many cameras.
        pixels: Pixels of a picture, and wires of a camera.
        generator: Where chance comes from.
        crosstalk: Share of a wire's signal that comes from two other pixels, drawn at random; 0:
            none.
        share: Which of the cameras to make, all of them being drawn.

    Example:
        >>> cameras = sample_cameras(5, 64, torch.Generator().manual_seed(0))
        >>> cameras.weight.shape, int((cameras.weight != 0).sum()), int((cameras.weight < 0).sum())
        (torch.Size([5, 64, 64]), 320, 160)
    """
    own, sign, others = torch.rand(3, tasks, pixels, pixels, generator=generator)[:, share].unbind()
    order = own[:, 0].argsort(1)
    weight = torch.zeros_like(own).scatter(2, order[..., None], 1 - crosstalk)
    if crosstalk:
        part = torch.rand(tasks, pixels, 1, generator=generator)[share]
        weight.scatter_add_(
            2, others.topk(2).indices, crosstalk * torch.cat([part, 1 - part], dim=2)
        )
    negative = sign[:, 0].argsort(1) < pixels // 2
    log_gain, offset = (
        2 * torch.rand(2, tasks, pixels, generator=generator)[:, share] - 1
    ).unbind()
    gain = torch.where(negative, -1.0, 1.0) * (LOG_GAIN * log_gain).exp()
    return Cameras(weight * gain[..., None], OFFSET * offset)


@dataclass(frozen=True)
class CameraTasks(TaskSource):
    """Tasks of one camera each: a few labelled pictures that it sent, and others of all classes to be read.

    The support holds ``shots`` pictures of each of ``ways`` classes, drawn anew for every camera;
    queries are drawn from all other pictures. Labels are those of the pool: a 7 is a 7 for every
    camera. ``Tasks.hidden`` holds the query pictures before the camera, (tasks, queries, pixels),
    and ``support_x`` and ``query_x`` are flat: wires have no place.

    Example:
        >>> pool = torch.rand(200, 8, 8), torch.arange(200) % 10
        >>> tasks = CameraTasks(*pool, ways=5, shots=2).sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_x.shape
        (torch.Size([4, 10, 64]), torch.Size([4, 50, 64]))
    """

    images: Tensor
    """(images, height, width): uint8 in 0 to 255, or float in 0 to 1."""
    labels: Int[Tensor, " images"]
    """The class of each image, counted from 0; every class is there."""
    ways: int = 10
    """Classes shown to a camera."""
    shots: int = 1
    """Support pictures of each class shown; with ``fewest_shots`` the most there can be."""
    queries: int = 50
    """Query pictures of a camera."""
    crosstalk: float = 0.0
    """As for `sample_cameras`."""
    labelled: bool = True
    """Support pictures have labels; otherwise these are all `UNLABELLED`."""
    augment: Augment | None = None
    """Changes each picture at random before the camera. For meta-training only."""
    fewest_shots: int | None = None
    """Draw the shots of each class of each camera from this number to ``shots``; the others are
    masked."""

    def __post_init__(self) -> None:
        counts = torch.bincount(self.labels)
        classes, fewest = len(counts), int(counts.min())
        if not 1 <= self.ways <= classes:
            raise ConfigError(
                f"`ways={self.ways}` but there are {classes} classes. A camera is shown some of "
                f"them. Pass `ways` from 1 to {classes}."
            )
        if not 1 <= self.shots <= fewest:
            raise ConfigError(
                f"`shots={self.shots}` but the rarest class has {fewest} pictures. None is drawn "
                f"twice for a camera. Pass `shots` from 1 to {fewest}."
            )
        left = len(self.images) - self.ways * self.shots
        if not 1 <= self.queries <= left:
            raise ConfigError(
                f"`queries={self.queries}` but {left} of {len(self.images)} pictures are not in "
                f"the support set. Pass `queries` from 1 to {left}."
            )
        if self.fewest_shots is not None and not 1 <= self.fewest_shots <= self.shots:
            raise ConfigError(
                f"`fewest_shots={self.fewest_shots}` with `shots={self.shots}`. The shots of a "
                f"class are drawn from the first to the second. Pass `fewest_shots` from 1 to "
                f"{self.shots}."
            )
        if not 0 <= self.crosstalk < 1:
            raise ConfigError(
                f"`crosstalk={self.crosstalk}`. It is the share of a wire's signal that comes from "
                "other pixels. Pass a number from 0 to below 1."
            )

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw classes, pictures, then cameras, for all tasks at once.

        Gather and change those of a share.
        """
        if not takes_share(self.augment) and share != ALL:
            return self.sample(tasks, generator).take(share)
        classes = int(self.labels.max()) + 1
        of_class = self.labels == torch.arange(classes)[:, None]
        shown = (
            torch.rand(tasks, classes, generator=generator)[share]
            .topk(self.ways)
            .indices.sort(1)
            .values
        )
        chance = torch.rand(tasks, len(self.images), generator=generator)[share]
        support = (
            chance[:, None].masked_fill(~of_class[shown], -1.0).topk(self.shots).indices.flatten(1)
        )
        query = torch.rand(tasks, len(self.images), generator=generator)[share].scatter(
            1, support, -1.0
        )
        drawn = torch.cat([support, query.topk(self.queries).indices], dim=1)
        pictures = self.images[drawn]
        pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        if self.augment is not None:
            how = (
                (generator,)
                if share == ALL
                else (generator, Among.tasks(tasks, share, drawn.shape[1]))
            )
            pictures = self.augment(pictures.flatten(0, 1)[:, None], *how)[:, 0].unflatten(
                0, drawn.shape
            )
        pictures = pictures.flatten(2)
        cameras = sample_cameras(tasks, pictures.shape[2], generator, self.crosstalk, share)
        support_x, query_x = cameras.send(pictures).split([support.shape[1], self.queries], dim=1)
        support_y, query_y = self.labels[drawn].split([support.shape[1], self.queries], dim=1)
        mask = torch.ones_like(support, dtype=torch.bool)
        if self.fewest_shots is not None:
            kept = torch.randint(
                self.fewest_shots, self.shots + 1, (tasks, self.ways, 1), generator=generator
            )
            mask = (torch.arange(self.shots) < kept[share]).flatten(1)
        if not self.labelled:
            support_y = torch.full_like(support_y, UNLABELLED)
        before = pictures[:, support.shape[1] :]
        return Tasks.of(support_x, support_y, query_x, query_y, support_mask=mask, hidden=before)
