"""Modes of a mixture of Gaussians: covered ones, share of good samples, and their balance."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.measures.check import check_finite

REACH = 3.0
"""Distance from a centre up to which a sample is of high quality, in standard deviations."""


class ModeCounts(NamedTuple):
    """Modes of one or several sets of samples; each value has the leading axes of the samples."""

    covered: Tensor
    """Number of modes with a sample of high quality."""
    high_quality: Tensor
    """Share of samples within 3 standard deviations of the nearest centre, from 0 to 1."""
    reverse_kl: Tensor
    """Divergence of the histogram of modes from the uniform one, in nats; 0 is balanced."""


def modes(samples: Tensor, centres: Tensor, std: float) -> ModeCounts:
    """Count the modes of a mixture of equal Gaussians that samples cover.

    With p the share of each of k modes among the samples of high quality, the divergence is
    KL(p || uniform) = sum p log(k p). It is log(k), its maximum, without such a sample.

    Args:
        samples: One set of samples, (samples, width), or several along leading axes, such as those
            of a model's replicas.
        centres: Centre of each mode, (modes, width). Each sample belongs to the nearest one.
        std: Standard deviation of each mode along each axis.

    Raises:
        ShapeError: If samples and centres differ in width.
        DataError: If there are no samples, or a number is NaN or infinite.
        ConfigError: If ``std`` is not above 0.

    Example:
        >>> centres = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> samples = torch.tensor([[0.0, 0.1], [0.1, 0.0], [0.5, 0.0], [0.0, 0.0]])
        >>> covered, good, reverse_kl = modes(samples, centres, std=0.1)
        >>> covered.item(), good.item(), round(reverse_kl.item(), 3)
        (1, 0.75, 0.693)

    Source:
        Lin et al., "PacGAN" (2018), section 4.1: 2,500 samples, 3 standard deviations. Their text
        has all samples in the histogram and their program those of high quality, as here.
    """
    _check(samples, centres, std)
    distance, nearest = torch.cdist(samples, centres.to(samples)).min(-1)
    is_good = distance < REACH * std
    is_in_mode = one_hot(nearest, len(centres)) * is_good[..., None]
    share = is_in_mode.sum(-2) / is_good.sum(-1, keepdim=True).clamp(min=1)
    reverse_kl = torch.xlogy(share, share * len(centres)).sum(-1)
    return ModeCounts(
        (share > 0).sum(-1),
        is_good.to(samples.dtype).mean(-1),
        torch.where(is_good.any(-1), reverse_kl, math.log(len(centres))),
    )


def ceiling(centres: Tensor, std: float, samples: int, generator: torch.Generator) -> ModeCounts:
    """Count the modes that real samples cover: the best that a model can do.

    In two dimensions, 1 - exp(-4.5) = .989 of them are of high quality. About (k - 1) / (2 samples)
    of the divergence is chance.

    Args:
        centres: Centre of each mode, (modes, width).
        std: Standard deviation of each mode along each axis.
        samples: Number of samples drawn from the mixture.
        generator: Randomness of the draw.

    Raises:
        ConfigError: If ``std`` is not above 0.
    """
    drawn = centres[torch.randint(len(centres), (samples,), generator=generator)]
    noise = torch.randn(drawn.shape, generator=generator, dtype=drawn.dtype)
    return modes(drawn + std * noise, centres, std)


def _check(samples: Tensor, centres: Tensor, std: float) -> None:
    if samples.ndim < 2 or centres.ndim != 2 or samples.shape[-1] != centres.shape[-1]:
        raise ShapeError(
            f"`samples` has shape {tuple(samples.shape)} and `centres` {tuple(centres.shape)}. "
            "The distance of each sample to each centre is taken, so both end in the width of a "
            "sample. Pass (..., samples, width) and (modes, width)."
        )
    if not std > 0:
        raise ConfigError(
            f"`std={std}`. A sample is good within {REACH:g} standard deviations of a centre. Pass "
            "the standard deviation of the data's modes, above 0."
        )
    if not (samples.shape[-2] and len(centres)):
        raise DataError(
            f"{samples.shape[-2]} samples and {len(centres)} centres. Shares of no samples, or of "
            "no modes, do not exist. Pass one or more of each; 2,500 samples are usual."
        )
    check_finite("samples", samples)
    check_finite("centres", centres)
