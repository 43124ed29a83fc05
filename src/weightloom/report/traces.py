"""Traces: lines, marks, bars and heat maps of a plotly figure in, SVG elements out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape, unescape
from typing import Any

import torch

from weightloom.report.axes import Axis
from weightloom.report.figures import mark
from weightloom.report.pictures import data_uri
from weightloom.report.run import Facts
from weightloom.report.shades import coloured_values, shades

POINTS_NAMED = 200
"""A trace of at most this many marks has a tooltip on each; a longer one has a single tooltip."""
SYMBOLS = {
    "circle": "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z",
    "square": "M-.9-.9H.9V.9H-.9Z",
    "diamond": "M0-1.25 1.25 0 0 1.25-1.25 0Z",
    "triangle-up": "M0-1.15 1.1.8H-1.1Z",
    "cross": "M-.35-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1V-.35H-.35Z",
    "star": "M0-1.2.3-.4 1.14-.37.48.15.7 1 0 .5-.7 1-.48.15-1.14-.37-.3-.4Z",
}
"""Outline of each mark, of radius 1; others are drawn as circles, ``-open`` ones not filled."""
DASHES = {"dot": "2 3", "dash": "7 4", "dashdot": "7 3 2 3"}


@dataclass(frozen=True)
class Plane:
    """Axes of a drawing, and the font size in CSS pixels."""

    x: Axis
    y: Axis
    font: float


def values_along(traces: list[Facts], side: str) -> Iterator[Any]:
    """Yield all values that one axis must show."""
    for trace in traces:
        kind, values = trace.get("type", "scatter"), points_of(trace)[side]
        if kind == "heatmap":
            yield from edges_of(values)
            continue
        yield from values
        if kind == "bar" and side == ("x" if trace.get("orientation") == "h" else "y"):
            yield 0.0
        if side == "y" and (bars := _error_bars(trace)):
            for low, high in bars:
                yield from (low, high)


def points_of(trace: Facts) -> dict[str, list[Any]]:
    """Return the values of a trace along both axes; those not given are counted from 0."""
    if trace.get("type") == "heatmap":
        rows = trace["z"]
        given = {"x": range(len(rows[0])), "y": range(len(rows))}
    else:
        count = len(trace.get("x") or trace.get("y") or [])
        given = {"x": range(count), "y": range(count)}
    return {side: list(trace.get(side) or given[side]) for side in ("x", "y")}


def edges_of(centres: Sequence[Any]) -> tuple[float, float]:
    """Return the outer edges of evenly spaced cells."""
    half = (centres[-1] - centres[0]) / (len(centres) - 1) / 2 if len(centres) > 1 else 0.5
    return centres[0] - half, centres[-1] + half


def _error_bars(trace: Facts) -> list[tuple[float, float]]:
    halves = (trace.get("error_y") or {}).get("array") or []
    heights = points_of(trace)["y"] if halves else []
    pairs = [(_number(y), _number(half)) for y, half in zip(heights, halves, strict=True)]
    return [(y - half, y + half) for y, half in pairs]


def _number(value: Any) -> float:
    """Return a number of a figure; a missing one, null in JSON, is NaN."""
    return math.nan if value is None else float(value)


def drawn_trace(trace: Facts, number: int, traces: list[Facts], plane: Plane) -> str:
    """Draw one trace, with a tooltip that names it."""
    drawn = DRAW[trace.get("type", "scatter")](trace, number, traces, plane)
    name = str(trace.get("name") or "")
    title = f"<title>{escape(unescape(name))}</title>" if name else ""
    return f'<g opacity="{trace.get("opacity") or 1:g}">{title}{drawn}</g>'


def _scatter(trace: Facts, number: int, traces: list[Facts], plane: Plane) -> str:
    points = points_of(trace)
    places = [(plane.x.at(x), plane.y.at(y)) for x, y in zip(points["x"], points["y"], strict=True)]
    mode, parts = trace.get("mode") or "lines+markers", []
    if "lines" in mode:
        parts.append(_line(trace, number, places))
    parts += _error_lines(trace, number, places, plane)
    if "markers" in mode:
        parts += _marks(trace, number, places, _tooltips(trace, points))
    return "".join(parts)


def _line(trace: Facts, number: int, places: list[tuple[float | None, float | None]]) -> str:
    """Draw a line, broken at missing points; or the area inside it, if ``fill`` is set."""
    pieces, pen = [], "M"
    for x, y in places:
        if x is None or y is None:
            pen = "M"
            continue
        pieces.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    style, colour = trace.get("line") or {}, _colour(trace, number)
    if trace.get("fill"):
        return f'<path d="{"".join(pieces)}Z" fill="{escape(trace.get("fillcolor") or colour)}"/>'
    dash = DASHES.get(style.get("dash", ""), "")
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="{"".join(pieces)}" fill="none" stroke="{escape(colour)}" '
        f'stroke-width="{style.get("width", 2):g}" stroke-linejoin="round"{dashes}/>'
    )


def _colour(trace: Facts, number: int) -> str:
    """Return the colour of a trace: its line's, else its marker's, else that of its number."""
    for part in ("line", "marker"):
        colour = (trace.get(part) or {}).get("color")
        if isinstance(colour, str):
            return colour
    return mark(number)[0]


def _error_lines(
    trace: Facts, number: int, places: list[tuple[float | None, float | None]], plane: Plane
) -> list[str]:
    colour, lines = escape(_colour(trace, number)), []
    for (x, _), ends in zip(places, _error_bars(trace), strict=False):
        low, high = (plane.y.at(end) for end in ends)
        if x is not None and low is not None and high is not None:
            path = f"M{x:.1f} {low:.1f}V{high:.1f}m-3 0h6M{x - 3:.1f} {low:.1f}h6"
            lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return lines


def _tooltips(trace: Facts, points: dict[str, list[Any]]) -> list[str]:
    """Return a tooltip per mark: its ``text``, else its name and values; empty for no tooltip."""
    count = len(points["x"])
    if trace.get("hoverinfo") in ("skip", "name") or count > POINTS_NAMED:
        return [""] * count
    if isinstance(texts := trace.get("text"), list):
        return [str(text) for text in texts]
    name = f"{trace['name']}: " if trace.get("name") else ""
    pairs = zip(points["x"], points["y"], strict=True)
    return [f"{name}{_value_text(x)}, {_value_text(y)}" for x, y in pairs]


def _value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _marks(
    trace: Facts,
    number: int,
    places: list[tuple[float | None, float | None]],
    tooltips: list[str],
) -> list[str]:
    style = trace.get("marker") or {}
    sizes, colours = style.get("size", 6), style.get("color")
    many = shades(style, colours) if isinstance(colours, list) else []
    fill = escape(colours if isinstance(colours, str) else _colour(trace, number))
    drawn = []
    for index, ((x, y), tooltip) in enumerate(zip(places, tooltips, strict=True)):
        if x is None or y is None:
            continue
        size = sizes[index] if isinstance(sizes, list) else sizes
        colour = many[index] if many else fill
        drawn.append(mark_path(str(style.get("symbol", "circle")), x, y, size / 2, colour, tooltip))
    return [f'<g opacity="{style.get("opacity") or 1:g}">{"".join(drawn)}</g>']


def mark_path(
    symbol: str, x: float, y: float, radius: float, colour: str, tooltip: str = ""
) -> str:
    """Draw one mark.

    Args:
        symbol: Plotly's name of it; ``-open`` ones are outlines.
        x: Pixel of its centre.
        y: Pixel of its centre.
        radius: In CSS pixels.
        colour: CSS colour, safe inside an attribute.
        tooltip: Text shown while the pointer is on it; empty for none.
    """
    outline = SYMBOLS.get(symbol.removesuffix("-open"), SYMBOLS["circle"])
    is_open = symbol.endswith("-open")
    line = f'fill="none" stroke="{colour}" stroke-width="{1.5 / radius:.2g}"'
    paint = line if is_open else f'fill="{colour}"'
    title = f"<title>{escape(unescape(tooltip))}</title>" if tooltip else ""
    where = f"translate({x:.1f} {y:.1f}) scale({radius:.3g})"
    return f'<path transform="{where}" d="{outline}" {paint}>{title}</path>'


def _bars(trace: Facts, number: int, traces: list[Facts], plane: Plane) -> str:
    """Draw the bars of one trace; those of several traces stand side by side."""
    grouped = [other for other in traces if other.get("type") == "bar"]
    points, fill = points_of(trace), escape(_colour(trace, number))
    flat = trace.get("orientation") == "h"
    side, other = ("y", "x") if flat else ("x", "y")
    along, across = (plane.x, plane.y) if flat else (plane.y, plane.x)
    thick = 0.8 * abs(across.pixel(1.0) - across.pixel(0.0)) / len(grouped)
    shift = (grouped.index(trace) - len(grouped) / 2) * thick
    zero, drawn = along.at(0.0) or along.start, []
    for name, value in zip(points[side], points[other], strict=True):
        middle, end = across.at(name), along.at(value)
        if middle is None or end is None:
            continue
        spans = (min(zero, end), max(0.5, abs(end - zero))), (middle + shift, thick)
        (x, width), (y, height) = spans if flat else spans[::-1]
        title = escape(unescape(f"{trace.get('name', '')}, {name}: {_value_text(value)}"))
        drawn.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{fill}"><title>{title}</title></rect>'
        )
    return "".join(drawn)


def _heatmap(trace: Facts, number: int, traces: list[Facts], plane: Plane) -> str:
    """Draw a heat map as an image with one pixel per cell."""
    points = points_of(trace)
    x, x_end = (plane.x.at(edge) or 0.0 for edge in edges_of(points["x"]))
    y, y_end = (plane.y.at(edge) or 0.0 for edge in edges_of(points["y"]))
    cells = torch.tensor([[_number(cell) for cell in row] for row in trace["z"]])
    pixels = coloured_values(cells, trace, (trace.get("zmin"), trace.get("zmax")))
    if y_end < y:  # the first row lies at the bottom
        pixels = pixels.flip(1)
    return (
        f'<image x="{x:.1f}" y="{min(y, y_end):.1f}" width="{x_end - x:.1f}" '
        f'height="{abs(y - y_end):.1f}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="{data_uri(pixels)}"/>'
    )


DRAW: dict[str, Callable[[Facts, int, list[Facts], Plane], str]] = {
    "scatter": _scatter,
    "bar": _bars,
    "heatmap": _heatmap,
}
"""Function that draws each type of trace."""
