"""Statistics of the classes in a labelled support set, for any number of classes and shots."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from weightloom.errors import ShapeError


class ClassStatistics(NamedTuple):
    """Mean, variance and number of shots of the classes in a support set, per feature."""

    mean: Float[Tensor, "tasks ways features"]
    """Mean of each class; zero for a class without support."""
    spread: Float[Tensor, "tasks features"]
    """Variance within classes, pooled over classes; zero if no class has two shots."""
    shots: Float[Tensor, "tasks ways"]
    """Support points of each class."""


def class_statistics(
    features: Float[Tensor, "tasks support features"],
    labels: Int[Tensor, "tasks support"],
    mask: Bool[Tensor, "tasks support"] | None = None,
    ways: int | None = None,
) -> ClassStatistics:
    """Mean and number of shots of each class, and the variance within classes.

    Independent of the order of the support points.

    Args:
        features: Features of the support points.
        labels: Their labels, from 0 to ``ways - 1``; not read for masked points.
        mask: True for real points, False for padding. None: all are real.
        ways: Classes per task. None: one more than the largest label.

    Returns:
        ``mean``, (tasks, ways, features), zero for a class without support; ``spread``, (tasks,
        features), the variance within classes, pooled over them; ``shots``, (tasks, ways), the
        number of real points.

    Raises:
        ShapeError: If a label is outside 0 to ``ways - 1``.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[0, 0, 1]])
        >>> class_statistics(features, labels).mean[0]
        tensor([[2.],
                [5.]])
    """
    labels = labels if mask is None else labels.masked_fill(~mask, 0)
    if ways is None or not torch.compiler.is_exporting():  # an exported program checks no labels
        ways = _checked_ways(labels, ways)
    member = one_hot(labels, ways).to(features.dtype)
    if mask is not None:
        member = member * mask[..., None]
        features = features.masked_fill(~mask[..., None], 0.0)
    shots = member.sum(1)
    mean = (member.mT @ features) / shots.clamp(min=1)[..., None]
    # Masked points add zero: their features and their rows of `member` are zero.
    squares = (features - member @ mean).square()
    freedom = (shots - 1).clamp(min=0).sum(1, keepdim=True)
    return ClassStatistics(mean, squares.sum(1) / freedom.clamp(min=1), shots)


def _checked_ways(labels: Tensor, ways: int | None) -> int:
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.numel() else (0, -1)
    ways = highest + 1 if ways is None else ways
    if lowest < 0 or highest >= ways:
        raise ShapeError(
            f"Labels run from {lowest} to {highest}, for {ways} classes. "
            f"Labels are numbers from 0 to ways - 1 within a task. Pass `ways={highest + 1}`, or "
            "relabel."
        )
    return ways
