"""Scalars with known ranges, such as hyperparameters, become a condition whose norm does not depend on them."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError


class MagnitudeInvariantEncoding(nn.Module):
    """Each scalar becomes a point on a quarter of the unit circle: (cos(g π/2), sin(g π/2)).

    g runs from 0 at the low end of the scalar's range to 1 at the high end, linearly or in the
    logarithm. What a hypernetwork writes grows with its condition; here every condition has the
    norm √count.

    Args:
        low: Low end of each scalar's range.
        high: High end of each scalar's range.
        log: Whether g is linear in the logarithm, as suits a learning rate: for all scalars, or for
            each.
        clamp: Move values to the nearest end of their range instead of refusing them. A value that
            was moved has no gradient, and none is looked at, which saves a wait for the
            accelerator.

    Raises:
        ConfigError: If the arguments differ in length, or a range is empty, not finite, or for
            ``log`` not positive.

    Example:
        >>> encode = MagnitudeInvariantEncoding(low=[1e-4, 0.0], high=[1e-2, 0.5], log=[True, False])
        >>> encode(torch.tensor([[1e-4, 0.5], [1e-3, 0.25]])).round(decimals=2).abs()  # cosines, then sines
        tensor([[1.0000, 0.0000, 0.0000, 1.0000],
                [0.7100, 0.7100, 0.7100, 0.7100]])

    Source:
        Gonzalez Ortiz, Guttag and Dalca, "Magnitude Invariant Parametrizations Improve Hypernetwork
        Learning" (2024). Its other half, θ = own + generated, is what hypernetworks here do anyway.
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
            values: Each within its range.

        Raises:
            ShapeError: If there is another number of scalars.
            ConfigError: If a value is outside its range, or NaN.
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
        """The logarithm where that is asked for.

        Elsewhere it is not taken, since its derivative may not exist.
        """
        return torch.where(self.log, torch.where(self.log, values, 1.0).log(), values)

    def _refuse_values_outside(self, values: Tensor) -> None:
        rounding = 4 * max(
            torch.finfo(values.dtype).eps, torch.finfo(torch.float32).eps
        )  # ranges may be float32
        inside = (values >= self.low - rounding * self.low.abs()) & (
            values <= self.high + rounding * self.high.abs()
        )
        if not inside.all():
            task, scalar = (~inside).nonzero()[0].tolist()
            raise ConfigError(
                f"`values[{task}, {scalar}]` is {values[task, scalar].item():g}; the range of "
                f"scalar {scalar} is {self.low[scalar].item():g} to {self.high[scalar].item():g}. "
                "Outside it the encoding would turn back and give two values one code. Widen `low` "
                "and `high`, or build it with `clamp=True`."
            )


def _check_ranges(low: Sequence[float], high: Sequence[float], log: Sequence[bool]) -> None:
    if not len(low) == len(high) == len(log) or not low:
        raise ConfigError(
            f"`low` holds {len(low)} numbers, `high` {len(high)} and `log` {len(log)}. Each scalar "
            "has one of each, and there is at least one. Pass sequences of one length, or a single "
            "bool as `log`."
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
