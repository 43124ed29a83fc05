"""Returns over seeds and contexts in a few numbers that do not hang on one lucky or unlucky run."""

from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLES = 2_000


def interquartile(
    returns: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Mean of the middle half of all returns, and its 95 % bootstrap interval.

    Args:
        returns: Returns of each seed, one per context, in the same order of contexts for all seeds.
        resamples: How often seeds and contexts are drawn anew, both with replacement.
        seed: Of the draws.

    Returns:
        ``mean``, ``low`` and ``high``.

    Source:
        Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice"
        (2021), section 4. There runs are drawn within each task; here whole seeds and whole
        contexts are, which allows for what a seed has in common in all contexts.

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
    """Mean of the middle half of each row, the numbers at its ends counted by their share."""
    ordered, count = values.sort(1).values, values.shape[1]
    place = torch.arange(count, dtype=values.dtype)
    inside = (
        torch.minimum(place + 1, torch.tensor(0.75 * count))
        - torch.maximum(place, torch.tensor(0.25 * count))
    ).clamp(min=0)
    return (ordered * inside).sum(1) / inside.sum()
