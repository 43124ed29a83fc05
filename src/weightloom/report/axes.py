"""Axes of a drawing: values in, positions in CSS pixels and round ticks out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightloom.report.run import Facts

MINUS = "\N{MINUS SIGN}"
Tick = tuple[float, str]
"""Position on the axis, in the units of `Axis.low`, and label."""


@dataclass(frozen=True)
class Axis:
    """One axis: the interval of values it covers, its ticks, and its place on the drawing."""

    low: float
    high: float
    log: bool = False
    """Logarithmic: ``low``, ``high`` and the ticks are powers of ten."""
    categories: tuple[str, ...] = ()
    """Names at 0, 1, 2, …; empty on an axis of numbers."""
    start: float = 0.0
    """Pixel of ``low``."""
    end: float = 1.0
    """Pixel of ``high``."""
    ticks: tuple[Tick, ...] = ()

    def at(self, value: Any) -> float | None:
        """Return the pixel of a value; None for a missing, infinite or non-positive log value.

        Example:
            >>> Axis(0.0, 2.0, log=True, end=100.0).at(10.0)
            50.0
        """
        if self.categories:
            value = self.categories.index(value) if value in self.categories else None
        if value is None or not math.isfinite(value) or (self.log and value <= 0):
            return None
        return self.pixel(math.log10(value) if self.log else float(value))

    def pixel(self, place: float) -> float:
        """Return the pixel of a place given in the units of ``low``."""
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)


def axis_over(spec: Facts, values: Iterable[Any], pad: float, count: int) -> Axis:
    """Choose the interval and the ticks of an axis.

    Args:
        spec: ``xaxis`` or ``yaxis`` of a plotly layout: ``type``, ``range``, ``tickvals``,
            ``ticktext`` and ``nticks`` are read.
        values: Values to cover, numbers or names; missing and non-finite ones are ignored.
        pad: Margin at both ends, as a fraction of the interval.
        count: Maximum number of ticks, if ``nticks`` is not given.
    """
    known = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in known):
        names = tuple(dict.fromkeys(str(value) for value in known))
        marks = tuple((float(place), name) for place, name in enumerate(names))
        return Axis(-0.5, len(names) - 0.5, categories=names, ticks=marks)
    log = spec.get("type") == "log"
    given = _given_range(spec)
    low, high = _padded(given, 0.0) if given else _padded(_interval(known, log), pad)
    return Axis(low, high, log, ticks=_ticks(spec, low, high, log, spec.get("nticks") or count))


def round_steps(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten within an interval.

    There are more only where the next wider step would leave fewer than two.

    Example:
        >>> round_steps(0.0, 1.04, 6), round_steps(-12.0, 31.0, 5)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-10.0, 0.0, 10.0, 20.0, 30.0])
    """
    power = math.floor(math.log10((high - low) / max(1, count)))
    found: list[float] = []
    for lead in (1, 2, 5, 10, 20, 50):
        step = lead * 10.0**power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if found and last - first < 1:
            break
        found = [float(f"{number * step:.12g}") for number in range(first, last + 1)]
        if len(found) <= count:
            break
    return found


def tick_text(value: float) -> str:
    """Write a number as a tick label.

    Example:
        >>> [tick_text(value) for value in (0.0, -0.25, 20000.0, 3e-7)]
        ['0', '−0.25', '20,000', '3e−7']
    """
    plain = value == 0 or 1e-4 <= abs(value) < 1e6
    text = f"{value:,.6g}" if plain else f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", MINUS)


def _given_range(spec: Facts) -> tuple[float, float] | None:
    """Return ``range`` of an axis; None if it is missing or, as of a diverged run, not finite."""
    low, high = spec.get("range") or (None, None)
    if low is None or high is None or not math.isfinite(high - low):
        return None
    return float(low), float(high)


def _interval(values: Sequence[Any], log: bool) -> tuple[float, float]:
    shown = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not shown:
        return 0.0, 1.0
    low, high = float(min(shown)), float(max(shown))
    return (math.log10(low), math.log10(high)) if log else (low, high)


def _padded(interval: tuple[float, float], pad: float) -> tuple[float, float]:
    low, high = interval
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value
        return low - (half := 0.1 * abs(low) or 0.5), high + half
    return low - pad * (high - low), high + pad * (high - low)


def _ticks(spec: Facts, low: float, high: float, log: bool, count: int) -> tuple[Tick, ...]:
    values, texts = spec.get("tickvals"), spec.get("ticktext")
    if values is None:
        values = _log_steps(low, high, count) if log else round_steps(low, high, count)
    labels = texts or [tick_text(float(value)) for value in values]
    places = [math.log10(value) if log else float(value) for value in values]
    shown = zip(places, labels, strict=False)
    return tuple((place, text) for place, text in shown if low - 1e-9 <= place <= high + 1e-9)


def _log_steps(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten, or round values between them over less than two decades."""
    powers = range(math.ceil(low), math.floor(high) + 1)
    if len(powers) >= 3:
        return [10.0**power for power in powers[:: math.ceil(len(powers) / max(count, 3))]]
    leads = (1, 2, 5) if high - low > 0.7 else range(1, 10)
    first, last = math.floor(low), math.ceil(high)
    steps = [float(f"{lead}e{power}") for power in range(first, last + 1) for lead in leads]
    inside = [step for step in steps if low <= math.log10(step) <= high]
    return inside if len(inside) >= 2 else round_steps(10**low, 10**high, count)
