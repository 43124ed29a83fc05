"""Distances between the distributions of real and of generated features."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.measures.check import check_sets
from weightloom.runs.record import summary_over_seeds


class _Given(nn.Identity):
    """Stands for a network in torchmetrics, which receives features here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Squared Frechet distance between Gaussians with the means and covariances of two sets.

    It is |m - m'|² + tr(C + C' - 2 (C C')^½), by torchmetrics in float64. It is biased upwards for
    few samples, by about as much as two sets of real samples of these sizes are apart: report that
    number with it, and compare models at equal numbers of samples.

    Args:
        real: Features of real samples, (samples, width). Those of `FeatureClassifier` have a total
            variance of 1 on training data: 1 is then the distance of the mean sample, repeated.
        generated: Features of generated samples, likewise.

    Raises:
        ShapeError: If a set is not a table, or the widths differ.
        DataError: If a set has fewer than two samples, or a number is NaN or infinite.

    Example:
        >>> real = torch.tensor([[-1.0], [1.0]])
        >>> round(frechet_distance(real, 2 * real + 3), 6)  # 3² + (2 sqrt 2 - sqrt 2)²
        11.0

    Source:
        Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium" (2017), equation 6, with other features than theirs.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    check_sets(2, "a covariance needs two", real=real, generated=generated)
    metric = FrechetInceptionDistance(_Given(real.shape[1])).set_dtype(torch.float64)
    centre = real.double().mean(0)  # the sums of squares lose digits far from zero
    metric.update(real.double() - centre, real=True)
    metric.update(generated.double() - centre, real=False)
    return max(float(metric.compute()), 0.0)


class KernelDistance(NamedTuple):
    """Distance with its interval."""

    mean: float
    """Distance of the sets; about 0, also below it, if both are of one distribution."""
    ci95: float
    """Half the width of its 95 % interval; for two sets of one distribution it is too wide."""


def kernel_distance(
    real: Tensor, generated: Tensor, groups: int = 10, most: int = 2000, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy of two sets, with the kernel (x · y + 1)³.

    Unbiased for any number of samples. The interval is that of the jackknife: the distance is
    computed again without each group of the samples in turn.

    Args:
        real: Features of real samples, (samples, width). Those of `FeatureClassifier` have a mean
            squared norm of 1 on training data, for which the kernel's 1 is of the right size.
        generated: Features of generated samples, likewise.
        groups: Number of groups of the jackknife.
        most: Maximum number of samples used of each set. Equally many of both are drawn.
        seed: Seed of the draw and of the groups.

    Raises:
        ShapeError: If a set is not a table, or the widths differ.
        DataError: If a set has fewer than two samples per group, or a number is NaN or infinite.
        ConfigError: If ``groups`` is below 2.

    Source:
        Binkowski et al., "Demystifying MMD GANs" (2018), section 4 and equation 4. Their kernel
        divides x · y by the width; here the features are scaled. The jackknife is ours.
    """
    if groups < 2:
        raise ConfigError(
            f"`groups={groups}`. Each is left out in turn, and the spread of the distances gives "
            "the interval. Pass 2 or more, such as 10."
        )
    check_sets(2 * groups, f"{groups} groups need two each", real=real, generated=generated)
    count = min(len(real), len(generated), max(most, 2 * groups))
    generator = torch.Generator().manual_seed(seed)
    sets = [
        samples.double()[torch.randperm(len(samples), generator=generator)[:count]]
        for samples in (real, generated)
    ]
    group = torch.arange(count) % groups
    distance = _discrepancy(*sets)
    without = [_discrepancy(*(its[group != left] for its in sets)) for left in range(groups)]
    # the mean of these pseudo-values has the jackknife's interval
    pseudo = [groups * distance - (groups - 1) * its for its in without]
    return KernelDistance(distance, summary_over_seeds(pseudo)["ci95"])


def _discrepancy(real: Tensor, generated: Tensor) -> float:
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(real, generated, degree=3, gamma=1.0, coef=1.0))
