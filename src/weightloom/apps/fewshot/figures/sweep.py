"""The score against shots and ways.

A run in, a line for each method and one of ours for each number of ways out.
"""

import math
from html import escape

from weightloom.report.figures import Figure, Key, as_json, mark, plain_layout
from weightloom.report.run import Facts, Run
from weightloom.report.scores import score_words

BAND = 0.16
"""Opacity of a 95 % band."""


def sweep_figures(run: Run) -> list[Figure]:
    """Plot the score against shots: a line for each method at the run's own ways, and one of ours for each ways."""
    sweep = run.facts.get("sweep")
    if not sweep:
        return []
    rows, ours = sweep["rows"], sweep["ours"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = {
        name: [r for r in rows if (r["method"], r["ways"]) == (name, sweep["ways"])]
        for name in methods
    }
    lines = {name: its for name, its in lines.items() if its}
    ways = sorted({row["ways"] for row in rows if row["method"] == ours})
    title = "Methods" if ways in ([1], []) else f"Methods, {sweep['ways']}-way"
    figures = [_lines(lines, sweep["name"], title)] if lines else []
    if len(ways) > 1:
        by_ways = {
            f"{n}-way": [r for r in rows if (r["method"], r["ways"]) == (ours, n)] for n in ways
        }
        figures.append(_lines(by_ways, sweep["name"], f"Ways, {ours}"))
    return figures


def _lines(lines: dict[str, list[Facts]], name: str, title: str) -> Figure:
    import plotly.graph_objects as go

    drawn, keys, words = [], [], []
    lower_is_better = name == "mse"
    for index, (label, rows) in enumerate(lines.items()):
        colour, symbol, sign = mark(index)
        shots, means = [row["shots"] for row in rows], [row["mean"] for row in rows]
        half = [row["ci95"] if math.isfinite(row["ci95"]) else 0.0 for row in rows]
        low = [
            max(m - h, 0.05 * m) if lower_is_better else m - h
            for m, h in zip(means, half, strict=True)
        ]
        high = [mean + width for mean, width in zip(means, half, strict=True)]
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
    what = score_words(name)
    layout = plain_layout("shots", what, log_y=lower_is_better)
    shown = sorted({row["shots"] for rows in lines.values() for row in rows})
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": shown,
        "ticktext": [str(count) for count in shown],
    }
    alt = f"{what.capitalize()} against shots: {'; '.join(words)}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, "", 320, tuple(keys), title)
