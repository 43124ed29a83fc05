"""Drawings: a plotly figure in, an SVG element out that a page shows without a script.

Scatter, bar and heatmap traces are drawn. Text and grid take their colours from the page.
"""

import base64
import json
from dataclasses import replace
from html import escape, unescape
from typing import Any

import numpy as np
import torch

from weightloom.errors import DataError
from weightloom.report.axes import axis_over
from weightloom.report.figures import SYMBOL_OF_SIGN, Figure, Key
from weightloom.report.pictures import data_uri
from weightloom.report.run import Facts
from weightloom.report.shades import coloured_values, interval_of
from weightloom.report.traces import DASHES, DRAW, Plane, drawn_trace, mark_path, values_along

LETTER = 0.65
"""Mean width of a character, as a fraction of the font size."""


def draw_figure(figure: Figure, width: int) -> str:
    """Draw a figure as an SVG element.

    Args:
        figure: Its ``plot`` is the JSON of a plotly figure with traces of type ``scatter``, ``bar``
            or ``heatmap``; all axes are linear, logarithmic or of names.
        width: CSS pixels at full size; the page scales the element.

    Raises:
        DataError: If a trace has another type.
    """
    plot = json.loads(figure.plot)
    traces, layout = [_arrays(trace) for trace in plot["data"]], plot["layout"]
    for trace in traces:
        _check_type(trace)
    plane = _plane(traces, layout, width, figure.height)
    marks = "".join(
        drawn_trace(trace, number, traces, plane) for number, trace in enumerate(traces)
    )
    shapes = "".join(_shape(shape, plane) for shape in layout.get("shapes") or [])
    left, top = plane.x.start, plane.y.end
    across, down = plane.x.end - left, abs(plane.y.start - plane.y.end)
    top = min(top, plane.y.start)
    return (
        f'<svg role="img" aria-label="{escape(figure.alt)}" viewBox="0 0 {width} {figure.height}" '
        f'font-size="{plane.font:g}">{_frame(plane, layout)}'
        f'<svg x="{left:g}" y="{top:g}" width="{across:g}" height="{down:g}" '
        f'viewBox="{left:g} {top:g} {across:g} {down:g}">{marks}{shapes}</svg>'
        f"{_colour_bar(traces, plane)}</svg>"
    )


def draw_sign(key: Key) -> str:
    """Draw the sign of a legend entry as a small SVG element that screen readers skip."""
    colour, symbol = escape(key.colour), SYMBOL_OF_SIGN.get(key.sign, "circle")
    if symbol == "solid" or symbol in DASHES:
        dash = f'stroke-dasharray="{DASHES.get(symbol, "none")}"'
        drawn = f'<path d="M-9 0H9" stroke="{colour}" stroke-width="2.5" {dash}/>'
        return f'<svg aria-hidden="true" viewBox="-9 -6 18 12" width="18" height="12">{drawn}</svg>'
    drawn = mark_path(symbol, 0.0, 0.0, 4.5, colour)
    return f'<svg aria-hidden="true" viewBox="-6 -6 12 12" width="12" height="12">{drawn}</svg>'


def _check_type(trace: Facts) -> None:
    if trace.get("type", "scatter") not in DRAW:
        raise DataError(
            f"A figure has a trace of type {trace['type']!r}. The report draws {', '.join(DRAW)}, "
            "as SVG without a script. Show another kind as an image, by "
            "`Pictures(title, [(words, data_uri(image))])`."
        )


def _arrays(value: Any) -> Any:
    """Replace each base64 array of plotly's JSON by a list."""
    if isinstance(value, list):
        return [_arrays(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "bdata" not in value:
        return {key: _arrays(part) for key, part in value.items()}
    array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
    shape = [int(size) for size in str(value.get("shape", -1)).split(",")]
    return array.reshape(shape).tolist()


def _plane(traces: list[Facts], layout: Facts, width: int, height: int) -> Plane:
    """Lay out the axes: labels left, title below, a colour bar right."""
    font = float((layout.get("font") or {}).get("size", 12))
    x_spec, y_spec = layout.get("xaxis", {}), layout.get("yaxis", {})
    bottom = height - 1.9 * font - (1.5 * font if _title(x_spec) else 0)
    pad = 0.0 if any(trace.get("type") == "heatmap" for trace in traces) else 0.05
    y = axis_over(y_spec, values_along(traces, "y"), pad, max(2, int(bottom / (3 * font))))
    longest = max((len(text) for _, text in y.ticks), default=0)
    left = LETTER * font * longest + 10 + (1.5 * font if _title(y_spec) else 0)
    right = width - 0.8 * font - _bar_width(traces, font)
    x = axis_over(x_spec, values_along(traces, "x"), pad, max(2, int((right - left) / (5 * font))))
    ends = (0.6 * font, bottom) if y_spec.get("autorange") == "reversed" else (bottom, 0.6 * font)
    return Plane(replace(x, start=left, end=right), replace(y, start=ends[0], end=ends[1]), font)


def _text(x: float, y: float, text: str, anchor: str, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    if not (said := escape(unescape(text))):
        return ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{said}</text>'


def _bar_width(traces: list[Facts], font: float) -> float:
    """Return the room that a colour bar takes, with its labels and title; 0 without one."""
    found = _coloured(traces)
    if found is None:
        return 0.0
    scale, limits = found
    longest = max((len(text) for _, text in axis_over({}, limits, 0.0, 5).ticks), default=0)
    return 13 + LETTER * font * longest + (1.6 * font if _title(scale.get("colorbar") or {}) else 0)


def _title(spec: Facts) -> str:
    return str((spec.get("title") or {}).get("text") or "")


def _frame(plane: Plane, layout: Facts) -> str:
    """Draw the grid, the ticks and the titles of both axes."""
    x, y, font = plane.x, plane.y, plane.font
    low, high = max(y.start, y.end), min(y.start, y.end)
    x_spec, y_spec = layout.get("xaxis", {}), layout.get("yaxis", {})
    columns = [(x.pixel(place), text) for place, text in x.ticks]
    rows = [(y.pixel(place), text) for place, text in y.ticks]
    parts = [_text(at, low + 1.4 * font, text, "middle") for at, text in columns]
    parts += [_text(x.start - 6, at + 0.35 * font, text, "end") for at, text in rows]
    if x_spec.get("showgrid", True):
        parts += [f'<path class="grid" d="M{at:.1f} {low:g}V{high:g}"/>' for at, _ in columns]
    if y_spec.get("showgrid", True):
        parts += [f'<path class="grid" d="M{x.start:g} {at:.1f}H{x.end:g}"/>' for at, _ in rows]
    parts.append(_text((x.start + x.end) / 2, low + 3 * font, _title(x_spec), "middle"))
    parts.append(_text(font, (low + high) / 2, _title(y_spec), "middle", turned=True))
    return "".join(parts)


def _coloured(traces: list[Facts]) -> tuple[Facts, tuple[float, float]] | None:
    """Return the first colour scale that a colour bar explains, and its limits."""
    for trace in traces:
        if trace.get("type") == "heatmap":
            cells = (cell for row in trace["z"] for cell in row)
            return trace, interval_of(cells, trace.get("zmin"), trace.get("zmax"))
        style = trace.get("marker") or {}
        if style.get("showscale"):
            return style, interval_of(style["color"], style.get("cmin"), style.get("cmax"))
    return None


def _colour_bar(traces: list[Facts], plane: Plane) -> str:
    """Draw the colour scale right of the plot, with ticks and a title."""
    found = _coloured(traces)
    if found is None:
        return ""
    scale, limits = found
    font, top, bottom = plane.font, min(plane.y.start, plane.y.end), max(plane.y.start, plane.y.end)
    axis = replace(axis_over({}, limits, 0.0, 5), start=bottom, end=top)
    left = plane.x.end + 0.8 * font
    ramp = torch.linspace(1, 0, 64)[:, None] * (axis.high - axis.low) + axis.low
    image = data_uri(coloured_values(ramp, scale, (axis.low, axis.high)))
    parts = [
        f'<image x="{left:.1f}" y="{top:g}" width="9" height="{bottom - top:g}" '
        f'preserveAspectRatio="none" href="{image}"/>'
    ]
    for place, text in axis.ticks:
        parts.append(_text(left + 13, axis.pixel(place) + 0.35 * font, text, "start"))
    right = plane.x.end + _bar_width(traces, font) + 0.5 * font
    title = _title(scale.get("colorbar") or {})
    parts.append(_text(right, (top + bottom) / 2, title, "middle", turned=True))
    return "".join(parts)


def _shape(shape: Facts, plane: Plane) -> str:
    """Draw a rectangle, in values of the axes or, where a ``ref`` is ``paper``, in fractions."""
    ends = {}
    for side, axis in (("x", plane.x), ("y", plane.y)):
        for end in (f"{side}0", f"{side}1"):
            paper = shape.get(f"{side}ref") == "paper"
            share = axis.start + float(shape[end]) * (axis.end - axis.start)
            ends[end] = share if paper else axis.at(shape[end]) or axis.start
    line = shape.get("line") or {}
    return (
        f'<rect x="{min(ends["x0"], ends["x1"]):.1f}" y="{min(ends["y0"], ends["y1"]):.1f}" '
        f'width="{abs(ends["x1"] - ends["x0"]):.1f}" height="{abs(ends["y1"] - ends["y0"]):.1f}" '
        f'fill="{escape(shape.get("fillcolor") or "none")}" '
        f'opacity="{shape.get("opacity") or 1:g}" '
        f'stroke="{escape(line.get("color") or "none")}" stroke-width="{line.get("width", 0):g}"/>'
    )
