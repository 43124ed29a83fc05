"""Colour scales: numbers in, colours out."""

import math
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
    """Map values, (rows, columns), to colours, (3, rows, columns); missing values become grey."""
    finite = values[values.isfinite()]
    low, high = (
        (float(finite.min()) if len(finite) else 0.0) if limits[0] is None else limits[0],
        (float(finite.max()) if len(finite) else 1.0) if limits[1] is None else limits[1],
    )
    share = ((values - low) / ((high - low) or 1.0)).clamp(0, 1)
    share = 1 - share if scale.get("reversescale") else share
    stops = [(float(at), _rgb(colour)) for at, colour in scale["colorscale"]]
    table = np.array([colour for _, colour in stops])
    places = share.nan_to_num(0.0).double().numpy()
    channels = [np.interp(places, [at for at, _ in stops], table[:, part]) for part in range(3)]
    return torch.where(values.isnan(), torch.tensor(0.5), torch.tensor(np.stack(channels)).float())


def _rgb(colour: str) -> tuple[float, ...]:
    """Read ``#rrggbb`` or ``rgb(r, g, b)`` as three numbers in [0, 1].

    Example:
        >>> _rgb("#ff0033"), _rgb("rgb(255, 0, 51)")
        ((1.0, 0.0, 0.2), (1.0, 0.0, 0.2))
    """
    if colour.startswith("#"):
        return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return tuple(float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
