"""Canonical targets of reconstruction: one choice of factors for each trained low-rank change.

In:   Params of trained adapters, held as low-rank factors, one set per task.
Out:  the same changes in canonical factors; their means and spreads over tasks.
Knows nothing of the hypernetwork that will reproduce them, or of the loss.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError, listed
from weightloom.forms import Factored, LowRank
from weightloom.params import Params

LEAST_SPREAD = 1e-6
"""Smallest standard deviation that is divided by: numbers that never vary stay near zero."""


def canonical(params: Mapping[str, Tensor]) -> Params:
    """Write each low-rank change in canonical factors, which depend on the change alone.

    B A = (B M) (M⁻¹ A) for every invertible M, so two trainings that end at the same change may
    hold it in quite different factors, and their mean, which a regression writes where it is
    unsure, is neither. Of B A = U S Vᵀ, the canonical factors are B = U √S and A = √S Vᵀ: ordered
    by singular values from the largest, balanced (BᵀB = A Aᵀ), and with the sign of each direction
    that has the positive skewness over both factors. They vary jumpily where two singular values
    cross.

    Args:
        params: Adapters per task; values that are not held as low-rank factors are kept.

    Returns:
        New Params of the same changes.

    Raises:
        ConfigError: If no value is held as low-rank factors.

    Example:
        >>> up, down, mix = torch.randn(1, 6, 2), torch.randn(1, 2, 5), torch.randn(2, 2)
        >>> own = torch.zeros(6, 5)
        >>> one = Factored(LowRank(2), own, {"up": up, "down": down})
        >>> other = Factored(LowRank(2), own, {"up": up @ mix, "down": mix.inverse() @ down})
        >>> a, b = (canonical({"w": value})["w"].factors["up"] for value in (one, other))
        >>> torch.allclose(a, b, atol=1e-3)
        True

    Source:
        Canonical targets by the singular value decomposition: "Prompt2Effect" (2026). The sign by
        skewness is ours.
    """
    result = Params(
        {
            name: _canonical(value) if _is_low_rank(value) else value
            for name, value in params.items()
        }
    )
    if not any(_is_low_rank(value) for value in result.values()):
        raise ConfigError(
            f"`params` holds no low-rank factors, only {listed(params) or 'nothing'}. Only factors "
            "can be exchanged for others of the same product. Pass adapters of the form `LowRank`, "
            "or those that `weightloom.forms.to_rank` makes of full changes."
        )
    return result


class Scale(NamedTuple):
    """Mean and standard deviation of each number over the tasks, to z-score targets with."""

    mean: Tensor
    """Mean of each number, (numbers,)."""
    spread: Tensor
    """Standard deviation of each number, (numbers,)."""

    @classmethod
    def of(cls, targets: Tensor) -> "Scale":
        """Measure targets, (tasks, numbers).

        Example:
            >>> scale = Scale.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
            >>> scale.scored(torch.tensor([[3.0, 5.0]]))
            tensor([[1., 0.]])
        """
        spread = targets.std(0, correction=0)
        return cls(targets.mean(0), spread.where(spread > LEAST_SPREAD, 1.0))

    def scored(self, values: Tensor) -> Tensor:
        """Subtract the mean and divide by the spread."""
        return (values - self.mean) / self.spread

    def restored(self, scores: Tensor) -> Tensor:
        """Multiply by the spread and add the mean."""
        return scores * self.spread + self.mean


def _is_low_rank(value: Tensor) -> bool:
    return isinstance(value, Factored) and isinstance(value.form, LowRank)


def _canonical(value: Tensor) -> Factored:
    assert isinstance(value, Factored)
    left, up = torch.linalg.qr(value.factors["up"])
    right, down = torch.linalg.qr(value.factors["down"].mT)
    inner, sizes, outer = torch.linalg.svd(up @ down.mT, full_matrices=False)
    root = sizes.sqrt()
    columns, rows = left @ inner * root[..., None, :], right @ outer.mT * root[..., None, :]
    skewness = columns.pow(3).sum(-2) + rows.pow(3).sum(-2)
    sign = torch.where(skewness < 0, -1.0, 1.0).to(root)[..., None, :]
    factors = {"up": columns * sign, "down": (rows * sign).mT}
    return Factored(value.form, value.own, factors, value.shared)
