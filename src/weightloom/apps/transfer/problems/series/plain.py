"""Forecasts that learn nothing: copy of the last season, last value, theta method.

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
SMOOTHING = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
"""Smoothing constants of `theta`, of which the one with the lowest error is taken."""


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


def theta(context: Series, season: int, steps: int) -> Quantiles:
    """Exponential smoothing with half the linear trend, after a seasonal pattern is taken away.

    The quantiles are those of the method's own errors over as many steps in the history.

    Source:
        Assimakopoulos and Nikolopoulos, "The theta model" (2000), as exponential smoothing with
        drift: Hyndman and Billah, "Unmasking the theta method" (2003). The pattern is the additive
        one of classical decomposition, the smoothing constant from a grid.
    """
    recent = context[-max(RECENT, 3 * season) :]
    length = len(recent)
    pattern = _pattern(recent, season)
    plain = recent - pattern[np.arange(length) % len(pattern)]
    place = np.arange(length) - (length - 1) / 2
    slope = float(place @ plain) / max(float(place @ place), 1e-12) / 2
    levels = _smoothed(plain)
    errors = plain[1:, None] - levels[:-1] - slope / SMOOTHING
    best = int(np.square(errors[min(3, length // 4) :]).mean(0).argmin())
    level, ahead = levels[:, best], np.arange(1, steps + 1)
    drift = slope * (ahead - 1 + 1 / SMOOTHING[best])
    first = min(5, length // 4)
    found = np.empty((steps, len(LEVELS)))
    for step in range(steps):
        lag = min(step + 1, (length - first) // 2)
        error = plain[first + lag :] - level[first:-lag] - drift[lag - 1]
        found[step] = level[-1] + drift[step] + np.quantile(error, LEVELS)
    return found + pattern[(length + ahead - 1) % len(pattern), None]


PLAIN: dict[str, Callable[[Series, int, int], Quantiles]] = {
    "seasonal": seasonal,
    "last": last,
    "theta": theta,
}
"""Forecasts by name."""


def _smoothed(values: Series) -> NDArray[np.float64]:
    """Levels of exponential smoothing after each value, (length, SMOOTHING)."""
    levels = np.empty((len(values), len(SMOOTHING)))
    level = np.full(len(SMOOTHING), values[0])
    for place, value in enumerate(values):
        level = level + SMOOTHING * (value - level)
        levels[place] = level
    return levels


def _pattern(values: Series, season: int) -> Series:
    """Mean deviation from the trend at each place of the season, (season,); 0 without a season.

    A series has a season if its autocorrelation there is above the limit of a 90 % test, as in the
    theta method.
    """
    length = len(values)
    if season < 2 or length < 2 * season + 2:
        return np.zeros(1)
    centred = values - values.mean()
    correlation = np.correlate(centred, centred, "full")[length - 1 :][: season + 1]
    correlation = correlation / max(correlation[0], 1e-12)
    limit = 1.645 * np.sqrt((1 + 2 * np.square(correlation[1:-1]).sum()) / length)
    if abs(correlation[-1]) <= limit:
        return np.zeros(1)
    window = np.full(season // 2 * 2 + 1, 1 / season)
    if season % 2 == 0:
        window[[0, -1]] /= 2
    first = len(window) // 2
    apart = values[first : length - first] - np.convolve(values, window, "valid")
    places = (np.arange(len(apart)) + first) % season
    pattern = np.bincount(places, apart, season) / np.bincount(places, minlength=season)
    return np.asarray(pattern - pattern.mean())


def _differences(context: Series, lag: int) -> NDArray[np.float64]:
    """Quantiles of the differences between values ``lag`` apart, or as far as half the history."""
    recent = context[-RECENT - lag :]
    lag = min(lag, len(recent) // 2)
    return np.asarray(np.quantile(recent[lag:] - recent[:-lag], LEVELS))
