"""Features of images and sounds: the last hidden layer of a small classifier trained on real data.

Distances between pixels say little about likeness; those between features of a classifier say more.
The features are specific to the classifier, so the name of a metric contains the classifier's.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.measures.check import check_finite
from weightloom.training import TrainOptions, train

SMALLEST_IMAGE = 12
"""Height and width in pixels from which an image is read by convolutions."""
CHANNELS = (16, 32)
"""Channels of the convolutions, after each of which the image is halved."""
SHIFT = 2
"""Maximum shift of such images in training, in pixels along each axis, the same for a batch."""
ROWS = 1024
"""Samples that are classified together."""


class FeatureClassifier(nn.Module):
    """Classifier whose last hidden layer gives features for measures of generated samples.

    Images of 12 x 12 pixels and more, and spectrograms, are read by two convolutions, which learn
    from shifted copies; others by a hidden layer of 256. Features are shifted and scaled so that on
    the training data their mean is 0 and their total variance 1. `fit` builds and trains one.

    Args:
        event: Shape of a sample, such as (channels, height, width) or (width,).
        classes: Number of classes.
        name: Name of the data, for the names of metrics.
        width: Number of features.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, event: tuple[int, ...], classes: int, name: str, width: int = 64) -> None:
        super().__init__()
        self.event, self.classes, self.name = event, classes, f"{name} classifier"
        self.trunk = nn.Sequential(*_layers(event, width))
        self.head = nn.Linear(width, classes)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def fit(
        cls,
        x: Tensor | Sequence[Tensor],
        labels: Tensor,
        name: str,
        classes: int | None = None,
        steps: int = 2000,
        batch: int = 64,
        rate: float = 2e-3,
        seed: int = 0,
    ) -> "FeatureClassifier":
        """Train a classifier on real samples; the same arguments give the same classifier on a CPU.

        Args:
            x: Training samples, (samples, *event), floating point, or a list of them.
            labels: Class of each, (samples,), from 0.
            name: Name of the data, e.g. ``"digits"``.
            classes: Number of classes. Default: one more than the largest label.
            steps: Steps of the training. On one core 2,000 take a second for 8 x 8 pixels and 20
                seconds for 28 x 28.
            batch: Samples per step.
            rate: Peak learning rate of AdamW.
            seed: Seed of the layers and of the batches.

        Raises:
            ShapeError: If samples differ in shape, or in number from the labels.
            DataError: If a class has no sample, or a number is NaN or infinite.
            ConfigError: If an option of the training is out of its range.

        Example:
            >>> x = torch.cat([torch.zeros(20, 4), torch.ones(20, 4)])
            >>> labels = torch.arange(40) // 20
            >>> classifier = FeatureClassifier.fit(x, labels, "toy", steps=40)
            >>> classifier.name, classifier.accuracy(x, labels)
            ('toy classifier', 1.0)
        """
        samples = _stacked(x)
        count = int(labels.max()) + 1 if classes is None else classes
        _check_labels(labels, len(samples), count)

        def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            drawn = torch.randint(len(samples), (batch,), generator=generator)
            return _shifted(samples[drawn], generator), labels[drawn]

        options = TrainOptions(steps, tasks=batch, outer_lr=rate, weight_decay=0.01, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(tuple(samples.shape[1:]), count, name)
            train(_Losses(made), draw, None, options)
        made.requires_grad_(False).eval()
        made._normalise(samples)
        return made

    def features(self, x: Tensor) -> Tensor:
        """Features of samples, (samples, *event) to (samples, width).

        Raises:
            ShapeError: If the samples are of another shape than the classifier's training data.
            DataError: If a sample contains NaN or infinity.
        """
        return torch.cat([(part - self.centre) / self.scale for part in self._hidden(x)])

    def predict(self, x: Tensor) -> Tensor:
        """Most probable class of each sample, (samples, *event) to (samples,).

        Raises:
            ShapeError: If the samples are of another shape than the classifier's training data.
            DataError: If a sample contains NaN or infinity.
        """
        with torch.no_grad():
            return torch.cat([self.head(part).argmax(1) for part in self._hidden(x)])

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of samples that are classified as the class that they were made for.

        The accuracy on real samples held out, which belongs beside it, is its usual limit.

        Args:
            x: Samples, (samples, *event).
            labels: Class of each, (samples,).

        Raises:
            ShapeError: If the samples are of another shape than the classifier's training data, or
                differ in number from the labels.
            DataError: If a sample contains NaN or infinity.
        """
        predicted = self.predict(x)
        _check_numbers(len(predicted), labels)
        return float((predicted == labels.to(predicted.device)).double().mean())

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (samples, *event) to (samples, classes)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits

    def _hidden(self, x: Tensor) -> Iterator[Tensor]:
        if x.shape[1:] != self.event or not len(x):
            raise ShapeError(
                f"`x` has shape {tuple(x.shape)}, but {self.name} was trained on samples of shape "
                f"{self.event}. It reads one size only. Pass one or more samples of that size, "
                "resized if need be."
            )
        check_finite("x", x.flatten(1))
        with torch.no_grad():
            for part in x.to(self.head.weight).split(ROWS):
                yield self.trunk(part)

    def _normalise(self, x: Tensor) -> None:
        features = self.features(x)
        self.centre = features.mean(0)
        self.scale = (features - self.centre).square().sum(1).mean().sqrt().clamp(min=1e-12)


class _Losses(nn.Module):
    """Cross-entropy of each sample of a batch."""

    def __init__(self, classifier: FeatureClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = batch
        return cross_entropy(self.classifier(x), labels, reduction="none")


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift large images by a few pixels; those that leave come in at the other side."""
    if not _is_large(x.shape[1:]):
        return x
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    return x.roll((down, right), (-2, -1))


def _is_large(event: tuple[int, ...]) -> bool:
    return len(event) == 3 and min(event[1:]) >= SMALLEST_IMAGE


def _layers(event: tuple[int, ...], width: int) -> Iterator[nn.Module]:
    if _is_large(event):
        before, *_ = event
        for channels in CHANNELS:
            yield from (nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            before = channels
        halvings = 2 ** len(CHANNELS)
        inputs = before * (event[1] // halvings) * (event[2] // halvings)
        yield from (nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
    else:
        yield from (nn.Flatten(), nn.Linear(math.prod(event), 256), nn.ReLU())
        yield from (nn.Linear(256, width), nn.ReLU())


def _stacked(x: Tensor | Sequence[Tensor]) -> Tensor:
    shapes = set() if isinstance(x, Tensor) else {tuple(one.shape) for one in x}
    if len(shapes) > 1:
        first, other, *_ = sorted(shapes)
        raise ShapeError(
            f"`x` holds samples of {len(shapes)} shapes, such as {first} and {other}. One "
            "classifier reads one size. Resize the samples first, for instance by "
            "`torch.nn.functional.interpolate`."
        )
    samples = x if isinstance(x, Tensor) else torch.stack([*x] or [torch.empty(0)])
    if samples.ndim < 2 or not (len(samples) and samples.is_floating_point()):
        raise ShapeError(
            f"`x` has shape {tuple(samples.shape)} and type {samples.dtype}. The classifier learns "
            "from floating-point samples. Pass (samples, *event), as in `images.float() / 255`."
        )
    check_finite("x", samples.flatten(1))
    return samples


def _check_numbers(samples: int, labels: Tensor) -> None:
    if labels.shape != (samples,):
        raise ShapeError(
            f"{samples} samples, but `labels` has shape {tuple(labels.shape)}. Each sample has one "
            f"class. Pass a tensor of {samples} numbers of classes."
        )


def _check_labels(labels: Tensor, samples: int, classes: int) -> None:
    _check_numbers(samples, labels)
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(
            f"`classes={classes}` with labels from {int(labels.min())} to {int(labels.max())}. "
            "A classifier tells two or more classes apart, numbered from 0. Pass one more than the "
            "largest label."
        )
    empty = (labels.long().bincount(minlength=classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"Classes {empty} of {classes} have no sample. The classifier could not know them, and "
            "would count all their generated samples as wrong. Add samples of them, or number the "
            "classes that there are from 0 without a gap."
        )
