"""Forecasts that learn nothing: copy of the last season, last value, spread of recent values.

In:   the history of a series and its season.
Out:  quantiles of each step, in the series' own units.
Knows nothing of models or families.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from weightloom.tasks.series import Series

Quantiles = NDArray[np.float64]
"""Quantiles of the steps of one window, (steps, levels)."""
LEVELS = np.arange(1, 10) / 10
"""Levels of the quantiles."""
RECENT = 512
"""Number of the most recent values whose differences are taken."""
SPREAD = 96
"""Number of the most recent values whose spread is taken; two seasons, if these are longer."""


def seasonal(context: Series, season: int, steps: int) -> Quantiles:
    """Copy the last season, with the spread of the differences between seasons of the history.

    k seasons ahead, the quantiles are the value k seasons before plus the quantiles of all
    differences of the history between values k seasons apart. A history that is shorter than one
    season and 8 values is treated as if it had no season.

    Source:
        Seasonal naive method: Hyndman and Athanasopoulos, "Forecasting: principles and practice"
        (2021), section 5.2, with empirical quantiles of its errors instead of normal ones.
    """
    season = season if len(context) >= season + 8 else 1
    ahead = np.arange(steps)
    copied = context[len(context) - season + ahead % season]
    seasons = ahead // season + 1
    errors = np.stack([_differences(context, season * k) for k in range(1, int(seasons[-1]) + 1)])
    return np.asarray(copied[:, None] + errors[seasons - 1])


def last(context: Series, season: int, steps: int) -> Quantiles:
    """Repeat the last value, with the spread of the differences over as many steps.

    Source:
        Naive method: Hyndman and Athanasopoulos (2021), section 5.2, with empirical quantiles of
        its errors. ``season`` is not read.
    """
    return seasonal(context, 1, steps)


def spread(context: Series, season: int, steps: int) -> Quantiles:
    """Give the quantiles of the most recent values for every step."""
    recent = context[-max(SPREAD, 2 * season) :]
    return np.repeat(np.quantile(recent, LEVELS)[None], steps, 0)


PLAIN: dict[str, Callable[[Series, int, int], Quantiles]] = {
    "seasonal": seasonal,
    "last": last,
    "spread": spread,
}
"""Forecasts by name."""


def _differences(context: Series, lag: int) -> NDArray[np.float64]:
    """Quantiles of the differences between values ``lag`` apart, or as far as half the history."""
    recent = context[-RECENT - lag :]
    lag = min(lag, len(recent) // 2)
    return np.asarray(np.quantile(recent[lag:] - recent[:-lag], LEVELS))
