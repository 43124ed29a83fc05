"""Encode scalars with known ranges, such as hyperparameters, as a condition of constant norm."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError


class MagnitudeInvariantEncoding(nn.Module):
    """Map each scalar to a point on a quarter of the unit circle, (cos(g π/2), sin(g π/2)).

    g runs from 0 at the low end of the scalar's range to 1 at the high end, linearly or
    logarithmically. The output of a hypernetwork grows with the norm of its condition; this
    encoding has the norm √count for all values of its ``count`` scalars.

    Args:
        low: Low end of each scalar's range.
        high: High end of each scalar's range.
        log: True for a scale that is linear in the logarithm, as for a learning rate; one bool for
            all scalars, or one for each.
        clamp: Clamp values to their range instead of raising an error. A clamped value has no
            gradient. Values are then not checked, which avoids a synchronisation with the
            accelerator.

    Raises:
        ConfigError: If the arguments differ in length, or a range is empty, not finite, or for
            ``log`` not positive.

    Example:
        >>> encode = MagnitudeInvariantEncoding([1e-4, 0.0], [1e-2, 0.5], log=[True, False])
        >>> encoded = encode(torch.tensor([[1e-4, 0.5], [1e-3, 0.25]]))
        >>> encoded.round(decimals=2).abs()  # cosines, then sines
        tensor([[1.0000, 0.0000, 0.0000, 1.0000],
                [0.7100, 0.7100, 0.7100, 0.7100]])

    Source:
        Gonzalez Ortiz, Guttag and Dalca, "Magnitude Invariant Parametrizations Improve Hypernetwork
        Learning" (2024). The paper's second part, θ = own + generated, is built into every
        hypernetwork here.
    """

    low: Tensor
    high: Tensor
    log: Tensor

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        log: bool | Sequence[bool] = False,
        clamp: bool = False,
    ) -> None:
        super().__init__()
        log = [log] * len(low) if isinstance(log, bool) else log
        _check_ranges(low, high, log)
        self.register_buffer("low", torch.tensor(low, dtype=torch.get_default_dtype()))
        self.register_buffer("high", torch.tensor(high, dtype=torch.get_default_dtype()))
        self.register_buffer("log", torch.tensor(log))
        self.clamp = clamp
        self.condition_dim = 2 * len(low)

    def forward(self, values: Float[Tensor, "tasks count"]) -> Float[Tensor, "tasks condition_dim"]:
        """Encode the scalars of each task: first all cosines, then all sines.

        Args:
            values: Scalars, each within its range.

        Raises:
            ShapeError: If ``values`` is not (tasks, count).
            ConfigError: If a value is outside its range or NaN, unless ``clamp`` is set.
        """
        count = len(self.low)
        if values.ndim != 2 or values.shape[1] != count:
            raise ShapeError(
                f"`values` has shape {tuple(values.shape)}. This encoding has ranges for {count} "
                f"scalars per task. Pass a tensor of shape (tasks, {count})."
            )
        if self.clamp:
            values = values.clamp(self.low, self.high)
        else:
            self._refuse_values_outside(values)
        low = self._scaled(self.low)
        angle = (self._scaled(values) - low) / (self._scaled(self.high) - low) * (math.pi / 2)
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def _scaled(self, values: Tensor) -> Tensor:
        """Logarithm of scalars with ``log``, others unchanged.

        The inner `torch.where` keeps the others out of the logarithm, whose derivative may be NaN.
        """
        return torch.where(self.log, torch.where(self.log, values, 1.0).log(), values)

    def _refuse_values_outside(self, values: Tensor) -> None:
        # Not below float32's rounding: the ranges may be held in it.
        rounding = 4 * max(torch.finfo(values.dtype).eps, torch.finfo(torch.float32).eps)
        inside = (values >= self.low - rounding * self.low.abs()) & (
            values <= self.high + rounding * self.high.abs()
        )
        if not inside.all():
            task, scalar = (~inside).nonzero()[0].tolist()
            raise ConfigError(
                f"`values[{task}, {scalar}]` is {values[task, scalar].item():g}; the range of "
                f"scalar {scalar} is {self.low[scalar].item():g} to {self.high[scalar].item():g}. "
                "Outside it the encoding would turn back and map two values to one code. Widen "
                "`low` and `high`, or build it with `clamp=True`."
            )


def _check_ranges(low: Sequence[float], high: Sequence[float], log: Sequence[bool]) -> None:
    if not len(low) == len(high) == len(log) or not low:
        raise ConfigError(
            f"`low` holds {len(low)} numbers, `high` {len(high)} and `log` {len(log)}. Each scalar "
            "has one of each, and at least one scalar is encoded. Pass sequences of one length, or "
            "a single bool as `log`."
        )
    for scalar, (bottom, top, logarithmic) in enumerate(zip(low, high, log, strict=True)):
        if not (math.isfinite(bottom) and math.isfinite(top) and bottom < top):
            raise ConfigError(
                f"The range of scalar {scalar} is {bottom:g} to {top:g}. A range has two finite "
                f"ends, the lower first. Pass `low[{scalar}] < high[{scalar}]`, or leave out a "
                "scalar that never changes."
            )
        if logarithmic and bottom <= 0:
            raise ConfigError(
                f"The range of scalar {scalar} is {bottom:g} to {top:g} with `log=True`. Only a "
                f"positive number has a logarithm. Pass a positive `low[{scalar}]`, or `log=False` "
                "for this scalar."
            )
