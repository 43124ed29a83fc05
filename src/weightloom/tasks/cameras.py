"""Cameras with crossed wires: classification of pictures seen through a new faulty camera per task.

A simulated fault on real pictures. It represents arrays of sensors, electrodes or antennas that
differ in wiring, mounting or calibration.
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
"""Ranges of log gain and offset: gains are exp U(-1.1, 1.1), offsets U(-1, 1)."""
UNLABELLED = -1
"""Label of an unlabelled support picture."""


class Cameras(NamedTuple):
    """Faulty cameras as affine maps: for a picture x the wires send v = weight x + offset."""

    weight: Float[Tensor, "tasks wires pixels"]
    offset: Float[Tensor, "tasks wires"]

    def send(
        self, pictures: Float[Tensor, "tasks pictures pixels"]
    ) -> Float[Tensor, "tasks pictures wires"]:
        """Return the signal on the wires of each camera for each of its pictures."""
        return torch.baddbmm(self.offset[:, None], pictures, self.weight.mT)


def sample_cameras(
    tasks: int, pixels: int, generator: torch.Generator, crosstalk: float = 0.0, share: slice = ALL
) -> Cameras:
    """Draw cameras with permuted wires, half of them negative, and a gain and offset per wire.

    Args:
        tasks: Number of cameras.
        pixels: Pixels of a picture, equal to the wires of a camera.
        generator: Source of randomness.
        crosstalk: Fraction of a wire's signal that comes from two other pixels, drawn at random.
        share: Slice of the cameras to return. The random numbers of all are drawn.

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
    """Classification tasks of one faulty camera each, with a few labelled support pictures.

    The support set has ``shots`` pictures of each of ``ways`` classes, drawn separately for every
    camera; query pictures are drawn from all others, of every class. Labels are those of the pool
    and mean the same in every task. ``support_x`` and ``query_x`` are flat, (tasks, pictures,
    pixels), as wires have no position. ``Tasks.hidden`` is the query pictures before the camera,
    (tasks, queries, pixels).

    Example:
        >>> pool = torch.rand(200, 8, 8), torch.arange(200) % 10
        >>> tasks = CameraTasks(*pool, ways=5, shots=2).sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_x.shape
        (torch.Size([4, 10, 64]), torch.Size([4, 50, 64]))
    """

    images: Tensor
    """(images, height, width): uint8 in 0 to 255, or float in 0 to 1."""
    labels: Int[Tensor, " images"]
    """Class of each image, from 0; every class has at least one image."""
    ways: int = 10
    """Classes in the support set of a camera."""
    shots: int = 1
    """Support pictures per class; with ``fewest_shots`` their maximum."""
    queries: int = 50
    """Query pictures per camera."""
    crosstalk: float = 0.0
    """Fraction of a wire's signal that comes from two other pixels, as in `sample_cameras`."""
    labelled: bool = True
    """Label the support pictures. False sets all their labels to `UNLABELLED`."""
    augment: Augment | None = None
    """Random change of each picture before the camera. For meta-training only."""
    fewest_shots: int | None = None
    """Minimum shots per class: the number is drawn uniformly from here to ``shots``, per class and
    camera, and the remaining pictures are masked. None: always ``shots``."""

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

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return. The random numbers of all are drawn.
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
            among = () if share == ALL else (Among.tasks(tasks, share, drawn.shape[1]),)
            changed = self.augment(pictures.flatten(0, 1)[:, None], generator, *among)
            pictures = changed[:, 0].unflatten(0, drawn.shape)
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
