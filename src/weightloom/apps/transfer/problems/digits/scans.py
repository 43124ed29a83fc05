"""MNIST to scikit-learn's digits without labels: training domains imitate small scans."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from weightloom.apps.transfer.problems.digits.models import DIGITS, SOURCES
from weightloom.apps.transfer.problems.digits.unlabelled import (
    EXAMPLES,
    QUERIES,
    Targets,
    Unlabelled,
)
from weightloom.apps.transfer.problems.problem import Setting
from weightloom.datasets import needed_file
from weightloom.errors import ConfigError, DataError
from weightloom.tasks import ALL, Tasks, TaskSource, load_digit_images
from weightloom.tasks.domains import UNLABELLED

if TYPE_CHECKING:
    from weightloom.apps.transfer.config import TransferOptions

FILE = ("mnist", "mnist_20k_10k.npz")
SIZE, FINE = 8, 16
"""Height and width of a scan, and of the picture whose blocks of 2 x 2 pixels it counts."""
CROP, ASPECT, SHEAR, SHIFT = (0.58, 0.85), 0.4, 0.3, 0.1
"""Ranges of the cropped side as a share of the picture's, of the log ratio of width to height, of
the slant, and of the shift as a share of half the side."""
INK, EDGE = (0.08, 0.6), (1.0, 8.0)
"""Ranges of the grey level that counts as ink, and of the steepness around it."""
BLUR = (0.2, 1.3)
"""Range of the blur's standard deviation before the threshold, in pixels of the fine picture."""
PLAIN = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.2])
"""Numbers of the domain of the source: the whole picture, grey levels as they are."""
IMITATED = 24
"""Validation targets: imitated scans of pictures that are not trained on."""
MOST_TARGETS = 20
"""Maximum number of parts of scikit-learn's digits: each holds its unlabelled pictures, and 25 or
more to score."""


@dataclass(frozen=True)
class ScanTasks(TaskSource):
    """Classification tasks of one way of scanning each, with unlabelled pictures as support.

    A way of scanning crops, stretches, slants and shifts a picture, blurs it, separates ink from
    paper around a grey level, and counts ink in blocks. Support and query pictures of a task
    differ. ``support_x`` and ``query_x`` are (tasks, pictures, 1, 8, 8).

    Example:
        >>> source = ScanTasks(torch.rand(100, 28, 28), torch.arange(100) % 10, queries=20)
        >>> source.sample(3, torch.Generator().manual_seed(0)).query_x.shape
        torch.Size([3, 20, 1, 8, 8])
    """

    images: Tensor
    """(images, height, width): uint8 in 0 to 255, or float in 0 to 1."""
    labels: Tensor
    """Digit of each image, (images,)."""
    examples: int = EXAMPLES
    """Unlabelled support pictures."""
    queries: int = QUERIES
    """Query pictures."""
    ways: Tensor | None = None
    """Numbers of ways of scanning, as `sample_ways` draws, to take in turn. None: new ones."""

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw ways of scanning, then pictures, for all tasks at once.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return.
        """
        ways = sample_ways(tasks, generator)
        if self.ways is not None:
            ways = self.ways[torch.arange(tasks) % len(self.ways)]
        # No picture twice in a task: a random start and a random stride through all pictures.
        count, drawn = len(self.images), self.examples + self.queries
        start = torch.randint(count, (tasks, 1), generator=generator)
        order = torch.randperm(count, generator=generator)
        rows = order[(start + torch.arange(drawn)) % count]
        pictures = self.images[rows]
        pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        seen = scanned(pictures, ways)[:, :, None]
        unknown = torch.full((tasks, self.examples), UNLABELLED)
        support_x, query_x = seen.split([self.examples, self.queries], dim=1)
        query_y = self.labels[rows[:, self.examples :]]
        return Tasks.of(support_x, unknown, query_x, query_y).take(share)


def sample_ways(tasks: int, generator: torch.Generator) -> Tensor:
    """Draw the numbers of ways of scanning, (tasks, 8).

    Side of the crop, log ratio, slant, shift to the right and down, grey level of ink, steepness,
    blur.
    """
    chance = torch.rand(tasks, 8, generator=generator)
    low = torch.tensor([CROP[0], -ASPECT, -SHEAR, -SHIFT, -SHIFT, INK[0], EDGE[0], BLUR[0]])
    high = torch.tensor([CROP[1], ASPECT, SHEAR, SHIFT, SHIFT, INK[1], EDGE[1], BLUR[1]])
    return low + (high - low) * chance


def scanned(pictures: Tensor, ways: Tensor) -> Tensor:
    """Scan pictures, (tasks, pictures, height, width) to (tasks, pictures, 8, 8), 0 to 1."""
    crop, ratio, slant, right, down, ink, edge, blur = ways.unbind(1)
    wide, high = crop * (ratio / 2).exp(), crop * (-ratio / 2).exp()
    back = torch.stack(
        [
            torch.stack([wide, slant * wide, right], 1),
            torch.stack([torch.zeros_like(high), high, down], 1),
        ],
        dim=1,
    )
    grid = affine_grid(back, [len(ways), 1, FINE, FINE], align_corners=False)
    fine = grid_sample(pictures, grid, align_corners=False)
    place = torch.arange(FINE)
    squares = (place[:, None] - place).square()
    near = (-squares / (2 * blur.square())[:, None, None]).softmax(-1)[:, None]
    fine = near @ fine @ near.mT
    level, slope = ink[:, None, None, None], edge[:, None, None, None]
    return avg_pool2d(((fine - level) * slope + level).clamp(0, 1), FINE // SIZE)


class Scans(Unlabelled):
    """Problem of reading scikit-learn's digits with a network of MNIST, from unlabelled pictures.

    Targets of validation are other ways of scanning MNIST: no picture of scikit-learn is used
    before the table.

    Args:
        config: Resolved options.

    Raises:
        DataError: If MNIST is not in the data folder, or damaged.
        MissingExtraError: If scikit-learn is not installed.
        ConfigError: If ``split`` is not 0, ``rank`` is too high, or targets are fewer than 2 or
            more than `MOST_TARGETS`.
    """

    def __init__(self, config: "TransferOptions") -> None:
        super().__init__(config)
        if config.test_targets > MOST_TARGETS:
            raise ConfigError(
                f"`--test-targets {config.test_targets}` with `--data {config.data}`. 1,797 "
                f"pictures are cut into targets of {EXAMPLES} unlabelled pictures and others to "
                f"score. Type {MOST_TARGETS} or fewer."
            )
        self.train_pictures, self.validation_pictures = load_labelled_mnist()
        self.validation = Targets.of(
            ScanTasks(*self.validation_pictures, queries=200).sample(
                IMITATED, torch.Generator().manual_seed(1)
            )
        )
        self.targets = self.validation if config.validation else _digit_targets(config.test_targets)
        kind = "imitated" if config.validation else "scikit-learn"
        self.families = [kind] * len(self.targets.query_y)
        self.names = [f"{kind} {number}" for number in range(len(self.families))]
        self.protocol = (
            f"Targets are {config.test_targets} parts of scikit-learn's digits, by writers. "
            "Options were chosen on imitated scans of MNIST."
        )

    def training_tasks(self, examples: int = EXAMPLES, queries: int = QUERIES) -> ScanTasks:
        """Return the source of random ways of scanning MNIST, new ones in every batch."""
        return ScanTasks(*self.train_pictures, examples, queries)

    def single_tasks(self) -> ScanTasks:
        """Return the source of `SOURCES` ways of scanning, the same in every batch."""
        ways = sample_ways(SOURCES, torch.Generator().manual_seed(self.config.seed))
        return ScanTasks(*self.train_pictures, EXAMPLES, 16, ways)

    def plain_tasks(self, queries: int) -> ScanTasks:
        """Return the source of whole pictures, made smaller."""
        return ScanTasks(*self.train_pictures, 0, queries, PLAIN[None])

    def settings(self) -> list[Setting]:
        """Return the one setting: unlabelled targets."""
        return [Setting(f"{EXAMPLES} unlabelled")]


def load_labelled_mnist() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Load MNIST with its labels: 20,000 training pictures, and 10,000 for validation.

    Raises:
        DataError: If the file is in no data folder, or is damaged.
    """
    path = needed_file(*FILE, "MNIST's file", "The images do not come with this library.")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            parts = [
                (torch.from_numpy(file[f"{part}_images"]), torch.from_numpy(file[f"{part}_labels"]))
                for part in ("train", "test")
            ]
        for images, labels in parts:
            if images.shape != (len(labels), 28, 28) or int(labels.max()) >= DIGITS:
                raise ValueError(f"images {tuple(images.shape)}, labels {tuple(labels.shape)}")
    except Exception as error:  # numpy, zipfile and zlib raise many types for a bad file
        raise DataError(
            f"`{path}` cannot be read as MNIST with labels ({error}). It holds images of 28x28 "
            "and their digits. Put a whole copy in its place."
        ) from error
    (train, test) = ((images, labels.long()) for images, labels in parts)
    return train, test


def _digit_targets(count: int) -> Targets:
    """Cut scikit-learn's digits into parts by writers; the first of each are unlabelled."""
    images, labels = load_digit_images()
    size = len(images) // count
    x = (images.float() / 255)[: size * count].view(count, size, 1, SIZE, SIZE)
    y = labels[: size * count].view(count, size)
    return Targets(x[:, :EXAMPLES], x[:, :0], y[:, :0], x[:, EXAMPLES:], y[:, EXAMPLES:])
