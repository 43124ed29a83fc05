"""Colour scales: numbers in, colours out."""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightloom.report.run import Facts


def shades(style: Facts, values: list[Any]) -> list[str]:
    """Return the colour of each value of a marker, as CSS."""
    if any(isinstance(value, str) for value in values):
        return [escape(str(value)) for value in values]
    numbers = torch.tensor([[math.nan if value is None else float(value) for value in values]])
    pixels = coloured_values(numbers, style, (style.get("cmin"), style.get("cmax")))
    levels = (255 * pixels[:, 0].T).round().int().tolist()
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in levels]


def coloured_values(values: Tensor, scale: Facts, limits: tuple[Any, Any]) -> Tensor:
    """Map values to colours; missing values become grey.

    Args:
        values: ``(rows, columns)``.
        scale: Its ``colorscale`` holds stops, each a place in [0, 1] and a colour;
            ``reversescale`` turns it round.
        limits: Values at both ends of the scale; None for the smallest or largest value.

    Returns:
        Red, green and blue in [0, 1], ``(3, rows, columns)``.
    """
    low, high = interval_of(values.flatten().tolist(), *limits)
    share = ((values - low) / ((high - low) or 1.0)).clamp(0, 1)
    share = 1 - share if scale.get("reversescale") else share
    places, colours = zip(
        *((float(at), _rgb(colour)) for at, colour in scale["colorscale"]), strict=True
    )
    wanted = share.nan_to_num(0.0).double().numpy()
    channels = [np.interp(wanted, places, levels) for levels in zip(*colours, strict=True)]
    return torch.where(values.isnan(), torch.tensor(0.5), torch.tensor(np.stack(channels)).float())


def interval_of(values: Iterable[Any], low: Any = None, high: Any = None) -> tuple[float, float]:
    """Return the limits of a colour scale: as given, else the smallest and largest finite value.

    Example:
        >>> interval_of([2.0, None, 5.0], high=9), interval_of([])
        ((2.0, 9.0), (0.0, 1.0))
    """
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    return (
        float(min(finite, default=0.0) if low is None else low),
        float(max(finite, default=1.0) if high is None else high),
    )


def _rgb(colour: str) -> tuple[float, ...]:
    """Read ``#rrggbb`` or ``rgb(r, g, b)`` as three numbers in [0, 1].

    Example:
        >>> _rgb("#ff0033"), _rgb("rgb(255, 0, 51)")
        ((1.0, 0.0, 0.2), (1.0, 0.0, 0.2))
    """
    if colour.startswith("#"):
        return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return tuple(float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
