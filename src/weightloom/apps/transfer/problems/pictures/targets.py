"""Targets of `--data pictures`: few-shot tasks of CIFAR-FS, chest X-rays and Fashion.

In:   the data sets' files.
Out:  `Family`: pictures, and the places of support and query of each target among them.
Knows nothing of networks and methods.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weightloom.datasets import needed_file
from weightloom.errors import DataError
from weightloom.networks.resnet20 import as_colour
from weightloom.tasks.cifar_fs import load_cifar_fs

SHOTS, QUERIES = 5, 15
"""Support and query pictures of each class of a target."""
PHOTOGRAPHS, SCANS, CLOTHES = "CIFAR-FS", "chest X-rays", "Fashion"
"""Names of the families."""
SCAN_FILE = ("pneumonia_mnist", "pneumonia_balanced.npz")
CLOTHES_FILE = ("fashion_mnist_900", "fashion900.npz")
TEST_SEED, VALIDATION_SEED = 1 << 20, 1 << 21


class Family(NamedTuple):
    """Targets whose pictures are of one data set."""

    name: str
    """Name of the family."""
    pictures: Tensor
    """All pictures, (pictures, 3, 32, 32), from 0 to 1."""
    places: Tensor
    """Places of the pictures of each target, (targets, ways, SHOTS + QUERIES), support first."""

    @property
    def ways(self) -> int:
        """Classes of a target."""
        return self.places.shape[1]

    @property
    def support(self) -> Tensor:
        """Places of the support, (targets, ways, SHOTS)."""
        return self.places[..., :SHOTS]

    @property
    def query(self) -> Tensor:
        """Places of the query, class after class, (targets, ways · QUERIES)."""
        return self.places[..., SHOTS:].flatten(1)

    @property
    def query_y(self) -> Tensor:
        """Labels of the query, equal in every target, (ways · QUERIES,)."""
        return torch.arange(self.ways).repeat_interleave(QUERIES)


def draw_places(
    counts: Tensor, targets: int, ways: int, seed: int, examples: int = SHOTS + QUERIES
) -> Tensor:
    """Draw classes for each target, and different pictures of each class.

    Args:
        counts: Pictures of each class, (classes,), that lie one class after the other.
        targets: Number of targets.
        ways: Classes of a target.
        seed: Seed; equal seeds draw equal targets, and the first ones stay for more targets.
        examples: Pictures of each class.

    Returns:
        Places among all pictures, (targets, ways, examples).

    Example:
        >>> draw_places(torch.tensor([3, 4]), targets=7, ways=2, seed=0, examples=3).shape
        torch.Size([7, 2, 3])
    """
    starts = counts.cumsum(0) - counts
    drawn = list[Tensor]()
    for target in range(targets):
        generator = torch.Generator().manual_seed(seed + target)
        classes = torch.randperm(len(counts), generator=generator)[:ways]
        each = [
            torch.randperm(int(counts[number]), generator=generator)[:examples] + starts[number]
            for number in classes.tolist()
        ]
        drawn.append(torch.stack(each))
    return torch.stack(drawn)


def families_to_test(photographs: int, others: int) -> list[Family]:
    """Draw the test targets: CIFAR-FS test classes, and two families that no method is tuned on.

    Args:
        photographs: Targets of 5 of the 20 test classes of CIFAR-FS.
        others: Targets of chest X-rays, normal or pneumonia, and of 5 of the 10 classes of Fashion,
            so many of each.

    Raises:
        DataError: If a file is missing or damaged.
        MissingExtraError: If Pillow, which decodes CIFAR-FS, is not installed.

    Source:
        X-rays: Yang et al., "MedMNIST v2" (2023), PneumoniaMNIST, the test part, classes balanced.
        Fashion: Xiao, Rasul and Vollgraf, "Fashion-MNIST" (2017), 90 pictures of each class.
    """
    scans = read_grey(SCAN_FILE, "test_images", "test_labels")
    clothes = read_grey(CLOTHES_FILE, "images", "labels")
    return [
        _cifar("test", photographs, TEST_SEED),
        _grey(SCANS, *scans, others, 2),
        _grey(CLOTHES, *clothes, others, 5),
    ]


def families_to_validate(photographs: int) -> list[Family]:
    """Draw targets of 5 of the 16 validation classes of CIFAR-FS.

    Args:
        photographs: Number of targets.

    Raises:
        DataError: If the file is missing or damaged.
        MissingExtraError: If Pillow, which decodes it, is not installed.
    """
    return [_cifar("validation", photographs, VALIDATION_SEED)]


def training_pictures() -> Tensor:
    """Load the training classes of CIFAR-FS: (64, 100, 3, 32, 32), uint8.

    Raises:
        DataError: If the file is missing or damaged.
        MissingExtraError: If Pillow, which decodes it, is not installed.
    """
    pool, split = load_cifar_fs()
    return pool.pick(split["train"]).examples


def _cifar(part: str, targets: int, seed: int) -> Family:
    pool, split = load_cifar_fs()
    chosen = pool.pick(split[part])
    places = draw_places(chosen.counts, targets, 5, seed)
    return Family(PHOTOGRAPHS, as_colour(chosen.examples.flatten(0, 1)), places)


def _grey(name: str, pictures: Tensor, labels: Tensor, targets: int, ways: int) -> Family:
    """Sort grey pictures by class, and draw targets."""
    order = labels.argsort(stable=True)
    places = draw_places(torch.bincount(labels), targets, ways, TEST_SEED)
    return Family(name, as_colour(pictures[order][:, None]), places)


def read_grey(file: tuple[str, str], images: str, labels: str) -> tuple[Tensor, Tensor]:
    """Read grey pictures, (pictures, height, width), uint8, and their labels, (pictures,), int64.

    Args:
        file: Folder and name of an npz file.
        images: Name of the pictures in it.
        labels: Name of the labels in it.

    Raises:
        DataError: If the file is missing or damaged.
    """
    about = f"It holds `{images}`, (pictures, height, width), and `{labels}`."
    path = needed_file(*file, "The pictures' file", about)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            pictures, numbers = arrays[images], arrays[labels].reshape(-1).astype("int64")
        if pictures.ndim != 3 or len(pictures) != len(numbers):
            raise ValueError(f"`{images}` has shape {pictures.shape}")
    except Exception as error:  # numpy, zipfile and zlib raise many types for a bad file
        raise DataError(
            f"`{path}` cannot be read as pictures ({str(error) or type(error).__name__}). {about} "
            "Put a whole copy in its place."
        ) from error
    return torch.from_numpy(pictures), torch.from_numpy(numbers)
