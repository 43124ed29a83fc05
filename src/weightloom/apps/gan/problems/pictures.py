"""Pictures by class: digits, MNIST, and a folder of one's own.

In:   options.
Out:  a `GanProblem`; scores of each class by a classifier of real pictures.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from weightloom.adversarial import AdversarialPair, FunctionGenerator
from weightloom.apps.app import Shown
from weightloom.apps.gan.problems.pairs import Sizes, build_pair
from weightloom.apps.gan.problems.problem import GanProblem
from weightloom.errors import DataError

if TYPE_CHECKING:
    from weightloom.apps.gan.config import GanOptions
    from weightloom.runs.record import Better

LARGER = 4
"""Times the size of training at which functions are drawn, then reduced."""
MOST_POINTS = 2**19
"""Points of functions that are evaluated at once; each may take some kilobytes."""
SHARE = 0.2
"""Share of the smallest class for the test, and for validation."""
FEWEST = 30
"""Minimum pictures of a class, so that the measures have 6 held out."""


SHOWN, WALK = 8, 2
"""Samples of each class in the report, and steps of the walk from one class to the next."""
DRAWN = (14, 28, 112, 224)
"""Sizes at which the report draws one function, in pixels."""
HELD = 200
"""Pictures of each digit of MNIST for validation, and for the test."""


class Parts(NamedTuple):
    """Real pictures of each class, by part; float in [0, 1]."""

    train: Sequence[Tensor]
    """Pictures by class, each (pictures, channels, height, width)."""
    validation: Tensor
    """(classes, pictures, channels, height, width)."""
    test: Tensor
    """Likewise."""


class Pictures(GanProblem):
    """Pictures of several classes, with the class as condition.

    Args:
        config: Resolved options.
        parts: Real pictures.
        names: Name of each class.
        title: Name of the data, for the names of measures.
    """

    score: ClassVar[str] = "accuracy"
    better: ClassVar["Better"] = "higher"
    shuffles = True
    spread: ClassVar[float] = 4.0
    """Spread of the frequencies of functions, as in `Sizes`."""
    cell: ClassVar[int] = 2
    """Positions along each axis of a pixel, as in `Sizes`."""

    classifier_steps: ClassVar[int] = 1000
    """Training steps of the classifier."""

    def __init__(
        self, config: "GanOptions", parts: Parts, names: Sequence[str], title: str
    ) -> None:
        self.config, self.parts, self.names, self.title = config, parts, names, title
        self.shape: tuple[int, ...] = tuple(parts.test.shape[2:])
        self.held_out = parts.validation if config.validation else parts.test
        trained = sum(map(len, parts.train))
        self.protocol = (
            f"{trained:,} pictures train, {parts.validation[:, :, 0, 0, 0].numel():,} choose "
            f"options, {parts.test[:, :, 0, 0, 0].numel():,} test. Scores are means over "
            f"{len(names)} classes. Distances are between features of a classifier trained on the "
            "training pictures. Recall, precision, density and coverage compare as many samples "
            "as held-out pictures, and are means over disjoint sets of samples. Functions drawn "
            f"at {LARGER} times the size are reduced by area means; pictures of one size are "
            "enlarged by bicubic interpolation, and reduced likewise."
        )

    def settings(self) -> Sequence[str]:
        """Return the size of training, and the larger one that is reduced to it."""
        height, width = self.shape[1:]
        return f"{height} x {width}", f"{LARGER * height} x {LARGER * width}, reduced"

    def conditions(self) -> Tensor:
        """Return one-hot classes."""
        return torch.eye(len(self.names))

    def build(self, method: str) -> AdversarialPair:
        """Build the pair of a method."""
        config = self.config
        return build_pair(
            method,
            Sizes(
                self.shape, len(self.names), config.noise_dim, config.width, self.spread, self.cell
            ),
        )

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an even number of pictures of every class, about ``batch`` in all."""
        count = 2 * max(1, self.config.batch // (2 * len(self.names)))
        drawn = [
            its[torch.randint(len(its), (count,), generator=generator)] for its in self.parts.train
        ]
        return self.conditions(), torch.stack(drawn)

    def samples(self, model: AdversarialPair, setting: str, shuffled: bool = False) -> Tensor:
        """Draw samples of every class at the size of training."""
        return self._drawn(model, setting, self.config.samples, shuffled)

    @torch.no_grad()
    def _drawn(
        self, model: AdversarialPair, setting: str, count: int, shuffled: bool = False
    ) -> Tensor:
        condition = self.conditions().roll(int(shuffled), 0)
        generator = torch.Generator().manual_seed(1)
        if setting == self.settings()[0]:
            return model.sample(condition, count, generator)
        if not isinstance(model.generator, FunctionGenerator):
            return self._enlarged(model.sample(condition, count, generator))
        noise = torch.randn(len(condition), count, model.noise_dim, generator=generator)
        larger = [LARGER * points for points in self.shape[1:]]
        piece = max(1, MOST_POINTS // (len(condition) * math.prod(larger)))
        drawn = [model.generator(condition, its, larger) for its in noise.split(piece, dim=1)]
        return self._reduced(torch.cat(drawn, dim=1))

    def _enlarged(self, pictures: Tensor) -> Tensor:
        """Enlarge pictures by bicubic interpolation, and reduce them to their size."""
        larger = interpolate(pictures.flatten(0, 1), scale_factor=LARGER, mode="bicubic")
        return self._reduced(larger.clamp(0, 1).unflatten(0, pictures.shape[:2]))

    def _reduced(self, pictures: Tensor) -> Tensor:
        return avg_pool2d(pictures.flatten(0, 1), LARGER).unflatten(0, pictures.shape[:2])

    @cached_property
    def classifier(self) -> Any:
        """Classifier of the training pictures, a `weightloom.measures.FeatureClassifier`."""
        from weightloom.measures import FeatureClassifier

        train = self.parts.train
        labels = torch.cat([torch.full((len(its),), row) for row, its in enumerate(train)])
        return FeatureClassifier.fit(
            torch.cat(list(train)), labels, self.title, steps=self.classifier_steps
        )

    @cached_property
    def _features(self) -> list[tuple[Tensor, Tensor]]:
        """Features of held-out and of training pictures, by class."""
        return [
            (self.classifier.features(held), self.classifier.features(train))
            for held, train in zip(self.held_out, self.parts.train, strict=True)
        ]

    def scores(self, setting: str, samples: Tensor) -> dict[str, Tensor]:
        """Score the samples of each class against held-out pictures of it."""
        rows = [self._scores_of(number, its) for number, its in enumerate(samples)]
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    def _scores_of(self, number: int, samples: Tensor) -> dict[str, float]:
        from weightloom.measures import (
            copying,
            density_coverage,
            kernel_distance,
            precision_recall,
        )

        held, train = self._features[number]
        label = torch.full((len(samples),), number)
        features = self.classifier.features(samples)
        whole = len(features) // len(held) * len(held)
        sets = features[:whole].split(len(held)) if whole else [features]
        compared = [
            (
                *precision_recall(held, its),
                *density_coverage(held, its),
                kernel_distance(held, its, groups=2).mean,
            )
            for its in sets
        ]
        precision, recall, density, coverage, distance = torch.tensor(compared).mean(0).tolist()
        return {
            "accuracy": self.classifier.accuracy(samples, label),
            "recall": recall,
            "precision": precision,
            "density": density,
            "coverage": coverage,
            f"kernel distance, {self.classifier.name}": distance,
            "nearer to training": copying(features, train, held),
        }

    def validate(self, model: AdversarialPair) -> float:
        """Return the accuracy of fewer samples, by the classifier."""
        samples = self._drawn(model, self.settings()[0], min(100, self.config.samples))
        labels = torch.arange(len(samples)).repeat_interleave(samples.shape[1])
        accuracy: float = self.classifier.accuracy(samples.flatten(0, 1), labels)
        return accuracy

    def ceilings(self, setting: str) -> Mapping[str, Tensor]:
        """Return training pictures, and samples of a kernel density of them."""
        generator = torch.Generator().manual_seed(2)
        rows = {
            "training pictures": _few(self.parts.train, self.config.samples, generator),
            "kernel density": kernel_samples(self.parts, self.config.samples, generator),
        }
        if setting == self.settings()[0]:
            return rows
        return {name: self._enlarged(its) for name, its in rows.items()}

    def facts(self) -> dict[str, Any]:
        """Return the accuracy of the classifier on held-out pictures."""
        labels = torch.arange(len(self.names)).repeat_interleave(self.held_out.shape[1])
        accuracy = self.classifier.accuracy(self.held_out.flatten(0, 1), labels)
        return {"classifier_accuracy": accuracy}

    def frame(self, model: AdversarialPair) -> Tensor | None:
        """Return two pictures of each class."""
        return self._drawn(model, self.settings()[0], 2).flatten(0, 1)

    @torch.no_grad()
    def show(self, models: Mapping[str, nn.Module]) -> Shown:
        """Return samples of each class, a walk, nearest training pictures, and larger functions."""
        tensors: dict[str, Tensor] = {}
        distances: dict[str, list[float]] = {}
        for method, model in models.items():
            if not isinstance(model, AdversarialPair):
                continue
            drawn = self._drawn(model, self.settings()[0], SHOWN)
            tensors[f"samples/{method}"] = drawn
            tensors[f"walk/{method}"] = self._walk(model)
            pairs, distances[method] = self._nearest(drawn[:, 0])
            tensors[f"nearest/{method}"] = pairs
            for size, larger in self._larger(model).items():
                tensors[f"resolutions/{method}/{size}"] = larger
        return tensors, {"classes": list(self.names), "nearest": distances}

    def _walk(self, model: AdversarialPair) -> Tensor:
        """Draw one noise under conditions from the first class to the second, and on to the last.

        Returns:
            Pictures, (steps, channels, height, width).
        """
        stops = self.conditions()
        share = torch.arange(WALK)[:, None] / WALK
        legs = [a + share * (b - a) for a, b in pairwise(stops)]
        path = torch.cat([*legs, stops[-1:]])
        noise = torch.randn(1, 1, model.noise_dim, generator=torch.Generator().manual_seed(3))
        return model.players(path).generate(noise.expand(len(path), -1, -1))[:, 0]

    def _nearest(self, samples: Tensor) -> tuple[Tensor, list[float]]:
        """Find the training picture nearest to one sample of each class, by pixels.

        Returns:
            Pairs of sample and training picture, (classes, 2, channels, height, width), and the
            distance of each.
        """
        pairs, distances = [], []
        for sample, train in zip(samples, self.parts.train, strict=True):
            far = (train - sample).flatten(1).norm(dim=1)
            pairs.append(torch.stack([sample, train[far.argmin()]]))
            distances.append(far.min().item())
        return torch.stack(pairs), distances

    def _larger(self, model: AdversarialPair) -> dict[int, Tensor]:
        """Draw one function at several sizes, each (channels, height, width)."""
        if not isinstance(model.generator, FunctionGenerator):
            return {}
        condition = self.conditions()[:1]
        noise = torch.randn(1, 1, model.noise_dim, generator=torch.Generator().manual_seed(3))
        return {size: model.generator(condition, noise, (size, size))[0, 0] for size in DRAWN}


def kernel_samples(parts: Parts, count: int, generator: torch.Generator) -> Tensor:
    """Draw training pictures with normal noise: samples of a kernel density of each class.

    Its bandwidth, one for all classes, gives validation pictures the highest likelihood.

    Args:
        parts: Real pictures.
        count: Samples of each class.
        generator: Source of the draws.

    Returns:
        Pictures, (classes, count, channels, height, width), clamped to [0, 1].
    """
    distances = [
        torch.cdist(held.flatten(1), train.flatten(1)).square()
        for held, train in zip(parts.validation, parts.train, strict=True)
    ]
    numbers = parts.test[0, 0].numel()

    def likelihood(width: float) -> float:
        return sum(
            ((-its / (2 * width**2)).logsumexp(1) - numbers * torch.tensor(width).log())
            .sum()
            .item()
            for its in distances
        )

    width = max([0.02 * 1.2**power for power in range(20)], key=likelihood)
    drawn = [its[torch.randint(len(its), (count,), generator=generator)] for its in parts.train]
    centres = torch.stack(drawn)
    return (centres + width * torch.randn(centres.shape, generator=generator)).clamp(0, 1)


def _few(classes: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Draw equally many different pictures of every class, at most ``count``."""
    count = min(count, *map(len, classes))
    return torch.stack(
        [its[torch.randperm(len(its), generator=generator)[:count]] for its in classes]
    )


def split(images: Sequence[Tensor]) -> Parts:
    """Divide the pictures of each class at random, always in the same way.

    Test and validation get a fifth of the smallest class each, from every class.

    Args:
        images: Pictures of each class, (pictures, channels, height, width), float in [0, 1].
    """
    generator = torch.Generator().manual_seed(0)
    mixed = [its[torch.randperm(len(its), generator=generator)] for its in images]
    held = int(SHARE * min(map(len, images)))
    return Parts(
        [its[2 * held :] for its in mixed],
        torch.stack([its[held : 2 * held] for its in mixed]),
        torch.stack([its[:held] for its in mixed]),
    )


class Digits(Pictures):
    """scikit-learn's digits, 8 x 8 pixels.

    Args:
        config: Resolved options.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """

    def __init__(self, config: "GanOptions") -> None:
        from weightloom.tasks import load_digit_images

        images, labels = load_digit_images()
        classes = [images[labels == digit, None].float() / 255 for digit in range(10)]
        super().__init__(config, split(classes), [str(digit) for digit in range(10)], "digits")


class Mnist(Pictures):
    """MNIST's digits, 28 x 28 pixels: 20,000 for training, some of which validate.

    Args:
        config: Resolved options.

    Raises:
        DataError: If the file is in no data folder, or is damaged.
    """

    spread = 6.0
    cell = 1  # four times the points would be four times as slow

    def __init__(self, config: "GanOptions") -> None:
        from weightloom.apps.transfer.problems.digits.scans import load_labelled_mnist

        (train, test) = (
            [images[labels == digit, None].float() / 255 for digit in range(10)]
            for images, labels in load_labelled_mnist()
        )
        parts = Parts(
            [its[HELD:] for its in train],
            torch.stack([its[:HELD] for its in train]),
            torch.stack([its[:HELD] for its in test]),
        )
        super().__init__(config, parts, [str(digit) for digit in range(10)], "MNIST")


class OwnPictures(Pictures):
    """Pictures in a folder with a sub-folder per class.

    They are read by `weightloom.tasks.folder.load_folder`, cropped to the central square and
    resized to ``--size``.

    Args:
        config: Resolved options.

    Raises:
        DataError: If there are fewer than two classes, or one has too few pictures.
        MissingExtraError: If Pillow is not installed.
    """

    spread = 6.0

    def __init__(self, config: "GanOptions") -> None:
        from weightloom.tasks.folder import load_folder
        from weightloom.tasks.tasks import told

        root = Path(config.data).expanduser()
        counts = {
            its.name: len(list(its.iterdir()))
            for its in sorted(root.iterdir())
            if its.is_dir() and its.name[0] != "."
        }
        _check_counts(config.data, counts)
        loaded = load_folder(root, size=config.size, fewest=1)
        pool = loaded.pool
        readable = dict(zip(pool.names, pool.counts.tolist(), strict=True))
        _check_counts(config.data, dict.fromkeys(counts, 0) | readable)
        classes = [
            its[:count].float() / 255
            for its, count in zip(pool.examples, pool.counts.tolist(), strict=True)
        ]
        super().__init__(config, split(classes), pool.names, root.name)
        self.notices = (
            f"{len(classes)} classes, {int(pool.counts.sum()):,} pictures, cropped to the central "
            f"square and resized to {config.size} x {config.size}",
            *told(loaded.skipped),
        )


def _check_counts(data: str, counts: Mapping[str, int]) -> None:
    """Raise a `DataError` unless there are two classes or more, each with enough pictures."""
    if len(counts) < 2:
        raise DataError(
            f"`{data}` holds {len(counts)} folders of pictures. The condition is the class of a "
            "picture, and its name that of the folder. Put the pictures of each class into a "
            "folder of its own, two or more."
        )
    for name, count in counts.items():
        if count < FEWEST:
            raise DataError(
                f"Class `{name}` of `{data}` has {count} pictures that can be read. {FEWEST} or "
                f"more are needed: {SHARE:.0%} of the smallest class are held out for the test and "
                "as many for validation, and the measures need 6. Add pictures to the class, or "
                "move its folder away."
            )
