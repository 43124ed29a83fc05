"""Measures by nearest neighbours: precision and recall, density and coverage, copies, duplicates.

Distances are Euclidean, in float64, and computed for `ROWS` samples at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.measures.check import check_sets

ROWS = 512
"""Samples whose distances to a whole set are in memory together."""


class PrecisionRecall(NamedTuple):
    """Quality and variety of samples, each from 0 to 1."""

    precision: float
    """Share of generated samples among the real ones."""
    recall: float
    """Share of real samples among the generated ones."""


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Shares of generated samples near a real one, and of real samples near a generated one.

    A sample is near another that is at least as close to it as its own k-th neighbour in its set.
    Both shares depend on the numbers of samples: compare models at equal numbers, and with the
    shares for a second set of real samples.

    Args:
        real: Features of real samples, (samples, width).
        generated: Features of generated samples, likewise.
        neighbours: Number k of the neighbour that gives the reach of a sample.

    Raises:
        ShapeError: If a set is not a table, or the widths differ.
        DataError: If a set has too few samples for k neighbours, or a number is NaN or infinite.
        ConfigError: If ``neighbours`` is below 1.

    Example:
        >>> real = torch.arange(10.0)[:, None]
        >>> precision_recall(real, real[:5])  # 8 and 9 are out of reach of 4
        PrecisionRecall(precision=1.0, recall=0.8)

    Source:
        Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models"
        (2019), equations 1 and 2.
    """
    _check(neighbours, real=real, generated=generated)
    hits = _reached(generated, real, neighbours)[0] > 0
    found = _reached(real, generated, neighbours)[0] > 0
    return PrecisionRecall(float(hits.double().mean()), float(found.double().mean()))


class DensityCoverage(NamedTuple):
    """Quality and variety of samples, which outliers disturb less."""

    density: float
    """Mean number of real samples that a generated one is near to, divided by k; 1 for real data,
    and above it for samples of the most usual kind."""
    coverage: float
    """Share of real samples with a generated one near, from 0 to 1."""


def density_coverage(real: Tensor, generated: Tensor, neighbours: int = 5) -> DensityCoverage:
    """Density of real samples around generated ones, and share of real samples with one near.

    Near is within the distance of a real sample to its k-th real neighbour. For samples of the
    data's own distribution the density is 1 and the coverage about 1 - 2^-k, if both sets are of
    one size.

    Args:
        real: Features of real samples, (samples, width).
        generated: Features of generated samples, likewise.
        neighbours: Number k of the neighbour that gives the reach of a real sample.

    Raises:
        ShapeError: If a set is not a table, or the widths differ.
        DataError: If a set has too few samples for k neighbours, or a number is NaN or infinite.
        ConfigError: If ``neighbours`` is below 1.

    Source:
        Naeem et al., "Reliable fidelity and diversity metrics for generative models" (2020),
        equations 3, 4 and 11.
    """
    _check(neighbours, real=real, generated=generated)
    near, is_covered = _reached(generated, real, neighbours)
    return DensityCoverage(
        float(near.double().mean() / neighbours), float(is_covered.double().mean())
    )


class Duplicates(NamedTuple):
    """Pairs of nearly equal samples."""

    pairs: int
    """Number of pairs among all samples."""
    support: float
    """Number of equally likely samples that would give as many pairs; infinite without a pair."""


def duplicates(samples: Tensor, within: float) -> Duplicates:
    """Count pairs of nearly equal samples, and the size of a support that has as many.

    Of s draws from n equally likely samples, s (s - 1) / 2n pairs are equal. Some 20 pairs are
    needed for n to be known within a factor of 1.5.

    Args:
        samples: Generated samples, or their features, (samples, width).
        within: Distance up to which two samples are nearly equal. A usual choice is the distance
            below which few of the real samples have another.

    Raises:
        ShapeError: If ``samples`` is not a table.
        DataError: If it has fewer than two samples, or a number is NaN or infinite.
        ConfigError: If ``within`` is not above 0.

    Example:
        >>> duplicates(torch.tensor([[0.0], [0.1], [5.0], [9.0]]), within=0.5)
        Duplicates(pairs=1, support=6.0)

    Source:
        Arora, Risteski and Zhang, "Do GANs learn the distribution? Some theory and empirics"
        (2018), section 3. They look for the number of samples with one pair; we count pairs.
    """
    check_sets(2, "a pair needs two", samples=samples)
    if not within > 0:
        raise ConfigError(
            f"`within={within}`. It is the distance up to which two samples are nearly equal, and "
            "rounding separates even copies. Pass a number above 0, such as 1e-3."
        )
    ordered = sum(int((distances <= within).sum()) for _, distances in _others(samples))
    pairs = ordered // 2
    possible = len(samples) * (len(samples) - 1) / 2
    return Duplicates(pairs, possible / pairs if pairs else float("inf"))


class Nearest(NamedTuple):
    """Nearest training sample of each sample."""

    number: Tensor
    """Number of the training sample, (samples,)."""
    distance: Tensor
    """Distance to it, (samples,), float64."""


def nearest_training(samples: Tensor, training: Tensor) -> Nearest:
    """Nearest training sample of each sample.

    Args:
        samples: Generated samples, or their features, (samples, width).
        training: Samples that the model was trained on, or their features.

    Raises:
        ShapeError: If a set is not a table, or the widths differ.
        DataError: If a set is empty, or a number is NaN or infinite.

    Example:
        >>> nearest_training(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]])).number
        tensor([1])
    """
    check_sets(1, "a neighbour is needed", samples=samples, training=training)
    found = [distances.min(1) for _, distances in _distances(samples, training)]
    return Nearest(
        torch.cat([its.indices for its in found]), torch.cat([its.values for its in found])
    )


def copying(samples: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Probability that a sample is closer to the training set than a real sample held out.

    It is .5 for a model as good as the data, 1 for copies of training samples, and below .5 for
    samples away from the data. Ties count by half.

    Args:
        samples: Generated samples, or their features, (samples, width).
        training: Samples that the model was trained on, or their features.
        held_out: Real samples that it was not trained on, or their features.

    Raises:
        ShapeError: If a set is not a table, or the widths differ.
        DataError: If a set is empty, or a number is NaN or infinite.

    Source:
        Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative
        models" (2020), section 3: the Mann-Whitney statistic, over all samples at once.
    """
    check_sets(1, "a neighbour is needed", samples=samples, training=training, held_out=held_out)
    of_real = nearest_training(held_out, training).distance.sort().values
    distance = nearest_training(samples, training).distance
    above = len(of_real) - torch.searchsorted(of_real, distance, right=True)
    not_below = len(of_real) - torch.searchsorted(of_real, distance)
    return float((above + not_below).double().mean() / (2 * len(of_real)))


def _check(neighbours: int, **sets: Tensor) -> None:
    if neighbours < 1:
        raise ConfigError(
            f"`neighbours={neighbours}`. The distance to that neighbour is the reach of a sample. "
            "Pass 1 or more; 3 and 5 are usual."
        )
    check_sets(neighbours + 1, f"neighbour {neighbours} of each is needed", **sets)


def _reached(samples: Tensor, owners: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return the owners that reach each sample, counted, and for each owner if it reaches one."""
    reach = torch.cat(
        [distances.kthvalue(neighbours, 1).values for _, distances in _others(owners)]
    )
    counts, reaches = [], torch.zeros_like(reach, dtype=torch.bool)
    for _, distances in _distances(samples, owners):
        is_near = distances <= reach
        counts.append(is_near.sum(1))
        reaches |= is_near.any(0)
    return torch.cat(counts), reaches


def _others(samples: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield distances within a set, where a sample is infinitely far from itself."""
    for rows, distances in _distances(samples, samples):
        distances[rows - rows[0], rows] = torch.inf
        yield rows, distances


def _distances(samples: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers of some samples, (rows,), and their distances to all others, (rows, others)."""
    others = others.double()
    for rows in torch.arange(len(samples), device=samples.device).split(ROWS):
        yield rows, torch.cdist(samples[rows].double(), others)
