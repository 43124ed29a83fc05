"""Plots of the score against shots: a line per method, and a line per number of ways."""

import math
from html import escape
from typing import Any

from weightloom.report.figures import Figure, Key, as_json, mark, plain_layout
from weightloom.report.run import Facts, Run
from weightloom.report.scores import score_words

BAND = 0.16
"""Opacity of the band of a 95 % interval."""


def sweep_figures(run: Run) -> list[Figure]:
    """Plot the score against shots, empty if the run has no sweep.

    The first figure compares the methods at the run's own ways; the second, if there are several
    ways, shows the main method at each of them.
    """
    sweep = run.facts.get("sweep")
    if not sweep:
        return []
    rows, ours, name = sweep["rows"], sweep["ours"], sweep["name"]
    by_method = _grouped([row for row in rows if row["ways"] == sweep["ways"]], "method")
    by_ways = _grouped([row for row in rows if row["method"] == ours], "ways")
    title = "Methods" if [*by_ways] in ([1], []) else f"Methods, {sweep['ways']}-way"
    figures = [_lines(by_method, name, title)] if by_method else []
    if len(by_ways) > 1:
        lines = {f"{ways}-way": by_ways[ways] for ways in sorted(by_ways)}
        figures.append(_lines(lines, name, f"Ways, {ours}"))
    return figures


def _grouped(rows: list[Facts], key: str) -> dict[Any, list[Facts]]:
    """Return the rows by one of their values, in the order of first appearance."""
    groups: dict[Any, list[Facts]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _interval(row: Facts, lower_is_better: bool) -> tuple[float, float]:
    """Return the ends of the 95 % interval; the lower one is positive for a logarithmic axis."""
    mean, half = row["mean"], row["ci95"] if math.isfinite(row["ci95"]) else 0.0
    low = max(mean - half, 0.05 * mean) if lower_is_better else mean - half
    return low, mean + half


def _lines(lines: dict[str, list[Facts]], name: str, title: str) -> Figure:
    import plotly.graph_objects as go

    drawn, keys, words = [], [], []
    lower_is_better = name == "mse"
    for index, (label, rows) in enumerate(lines.items()):
        colour, symbol, sign = mark(index)
        shots, means = [row["shots"] for row in rows], [row["mean"] for row in rows]
        ends = [_interval(row, lower_is_better) for row in rows]
        low, high = zip(*ends, strict=True)
        band = {
            "fill": "toself",
            "fillcolor": colour,
            "opacity": BAND,
            "line_width": 0,
            "hoverinfo": "skip",
        }
        drawn.append(
            go.Scatter(x=[*shots, *shots[::-1]], y=[*high, *low[::-1]], mode="lines", **band)
        )
        style = {"line": {"color": colour, "width": 2}, "marker": {"symbol": symbol, "size": 8}}
        drawn.append(
            go.Scatter(x=shots, y=means, mode="lines+markers", name=escape(label), **style)
        )
        keys.append(Key(label, sign, colour))
        words.append(
            f"{label} {', '.join(f'{m:.3g} from {k}' for m, k in zip(means, shots, strict=True))}"
        )
    score = score_words(name)
    layout = plain_layout("shots", score, log_y=lower_is_better)
    shown = sorted({row["shots"] for rows in lines.values() for row in rows})
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": shown,
        "ticktext": [str(count) for count in shown],
    }
    alt = f"{score.capitalize()} against shots: {'; '.join(words)}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, "", 320, tuple(keys), title)
