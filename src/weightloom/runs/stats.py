"""Robust statistics of returns over seeds and contexts."""

from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLES = 2_000
"""Bootstrap resamples."""


def interquartile(
    returns: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Return the interquartile mean of all returns, with its 95 % bootstrap interval.

    Args:
        returns: Returns of each seed, one per context, in the same order of contexts for all seeds.
        resamples: Number of resamples of seeds and contexts, both drawn with replacement.
        seed: Seed of the resamples.

    Returns:
        ``mean``, and the limits of the interval as ``low`` and ``high``.

    Source:
        Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice"
        (2021), section 4. They resample runs within each task; we resample whole seeds and whole
        contexts, since the returns of one seed are correlated over contexts.

    Example:
        >>> interquartile([[0.0, 1.0, 2.0, 99.0], [0.0, 1.0, 2.0, -99.0]])["mean"]
        1.0
    """
    values = torch.tensor(returns, dtype=torch.float64)
    seeds, contexts = values.shape
    generator = torch.Generator().manual_seed(seed)
    drawn_seeds = torch.randint(seeds, (resamples, seeds), generator=generator)
    drawn_contexts = torch.randint(contexts, (resamples, contexts), generator=generator)
    drawn = values[drawn_seeds[:, :, None], drawn_contexts[:, None, :]].flatten(1)
    means = _middle(drawn)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": _middle(values.flatten()[None]).item(), "low": low, "high": high}


def _middle(values: Tensor) -> Tensor:
    """Return the mean of the middle half of each row; values at its ends count by their share."""
    ordered, count = values.sort(1).values, values.shape[1]
    place = torch.arange(count, dtype=values.dtype)
    inside = (
        torch.minimum(place + 1, torch.tensor(0.75 * count))
        - torch.maximum(place, torch.tensor(0.25 * count))
    ).clamp(min=0)
    return (ordered * inside).sum(1) / inside.sum()
