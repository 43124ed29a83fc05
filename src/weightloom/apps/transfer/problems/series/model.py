"""The forecasting model `fracast` in two parts: a frozen reader of histories, and a head to adapt.

In:   windows of series.
Out:  states of the reader for each window, and forecasts as quantiles in units of its history.
Knows nothing of families, training or scores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.errors import DataError, MissingExtraError
from weightloom.tasks.series import CONTEXT, HORIZON, SHORTEST, Window

LEVELS = tuple(level / 10 for level in range(1, 10))
"""Levels of the quantiles."""
WIDTH = 64
"""Width of the model."""
AT_ONCE = 16
"""Windows per pass of the reader."""


class States(NamedTuple):
    """Windows as the reader sees them, in units of their history: 0 its minimum, 1 its maximum."""

    summary: Tensor
    """Mean and last state over the history, (windows, 2 · WIDTH)."""
    future: Tensor
    """States of the steps that are forecast, (windows, HORIZON, WIDTH)."""


class ForecastHead(nn.Module):
    """Head of the model: states of a window to quantiles of each step, 31,625 of 85,001 numbers.

    The others, which read a history of 2,048 values, stay frozen, so that their results are
    computed once for each window.

    Args:
        head: The head of ``fracast``, whose parameters are shared.
    """

    position: Tensor

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.queries = head.queries
        self.summary_proj = head.summary_proj
        self.decoder_ffns, self.decoder_norms = head.decoder_ffns, head.decoder_norms
        self.fc_blocks, self.out_proj = head.fc_blocks, head.out_proj
        from fracast._core.periodic.official_encoding import _recency_encoding

        steps = torch.arange(CONTEXT, CONTEXT + HORIZON)[None]
        self.register_buffer("position", _recency_encoding(steps, CONTEXT)[0], persistent=False)

    def forward(self, summary: Tensor, future: Tensor) -> Tensor:
        """Forecast windows from their states.

        Args:
            summary: (windows, 2 · WIDTH).
            future: (windows, HORIZON, WIDTH).

        Returns:
            Quantiles, (windows, HORIZON, levels).
        """
        steps = summary[:, None].expand(-1, HORIZON, -1)
        position = self.position.expand(len(summary), -1, -1)
        x = self.summary_proj(torch.cat([position, steps], 2)) + self.queries
        for ffn, norm in zip(self.decoder_ffns, self.decoder_norms, strict=True):
            x = norm(x + ffn(x))
        for block in self.fc_blocks:
            x = block(x)
        quantiles: Tensor = self.out_proj(x + future)
        return quantiles


class Reader(nn.Module):
    """The frozen part of ``fracast``, and its head."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from fracast import FracastModel
        except ImportError as error:
            raise MissingExtraError(
                f"The forecasting model `fracast` cannot be imported ({error}). It is an optional "
                "part of this library, .5 MB, because only series need it. "
                "Type `pip install 'weightloom[series]'`."
            ) from error
        model = FracastModel.from_pretrained(weights="fp32")
        self.core, self.whole = model.core, model.head
        self.requires_grad_(False)
        self.eval()

    def head(self) -> ForecastHead:
        """Return the head, which shares the parameters of this reader."""
        return ForecastHead(self.whole)

    def states(self, windows: Sequence[Window]) -> States:
        """Read histories.

        Raises:
            DataError: If a history has fewer than `SHORTEST` values.
        """
        parts = [
            self._read(windows[first : first + AT_ONCE])
            for first in range(0, len(windows), AT_ONCE)
        ]
        return States(
            torch.cat([its.summary for its in parts]), torch.cat([its.future for its in parts])
        )

    def _read(self, windows: Sequence[Window]) -> States:
        from fracast._core.periodic.official_encoding import _recency_encoding
        from fracast._core.periodic.seasonal_fill import detect_periods, folded_seasonal_fill

        values, there = (
            torch.zeros(len(windows), CONTEXT),
            torch.zeros(len(windows), CONTEXT).bool(),
        )
        for place, window in enumerate(windows):
            length = len(window.context)
            if length < SHORTEST:
                raise DataError(
                    f"History {place} has {length} values. The model reads at least {SHORTEST}. "
                    f"Pass a series with {SHORTEST - length} more values."
                )
            low, span = units(window.context)
            values[place, -length:] = torch.from_numpy((window.context - low) / span).float()
            there[place, -length:] = True
        with torch.no_grad():
            hidden = self.core(values[:, None], there[:, None], there[:, None].float())
            steps = torch.arange(CONTEXT, CONTEXT + HORIZON).expand(len(windows), -1)
            head: Any = self.whole
            periods = detect_periods(values, there, **head.period_kw)
            fill = folded_seasonal_fill(values, steps, periods, head.phase_bins, there)
            future = head.future_conv(hidden, fill, _recency_encoding(steps, CONTEXT))
            return States(torch.cat([hidden.mean(1), hidden[:, -1]], 1), future)


def units(context: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Return the minimum of a history and its range, the zero and the unit of its forecasts."""
    low = float(context.min())
    return low, max(float(context.max()) - low, 1e-5)
