"""Methods compared: score against time to adapt, and accuracy against confidence."""

import math
from html import escape
from typing import Any

from weightloom.report.figures import GREY, Figure, Key, as_json, mark, plain_layout
from weightloom.report.run import Facts
from weightloom.report.scores import score_words
from weightloom.runs.record import competes
from weightloom.runs.words import by_setting, score_text, time_text


def time_figures(scores: list[Facts]) -> list[Figure]:
    """Plot the score of every method against its time to adapt, one plot per setting."""
    competing = [row for row in scores if competes(row)]
    timed = [row for row in competing if (row.get("adapt_time_s") or 0) > 0]
    return [
        _time_figure(setting, rows, _methods(competing))
        for setting, rows in by_setting(timed).items()
    ]


def reliability_figures(scores: list[Facts]) -> list[Figure]:
    """Plot reliability diagrams, accuracy against confidence, one per setting.

    Regressions have none.
    """
    competing = [row for row in scores if competes(row)]
    sure = [row for row in competing if row.get("calibration")]
    return [
        _reliability_figure(setting, rows, _methods(competing))
        for setting, rows in by_setting(sure).items()
    ]


def time_ticks(times_s: list[float]) -> list[float]:
    """Return round times that enclose the given ones, in seconds.

    They are powers of ten, and over two decades or less also 2 and 5 times these.

    Example:
        >>> time_ticks([0.00003, 0.004]), time_ticks([0.03, 0.04])
        ([1e-05, 0.0001, 0.001, 0.01], [0.02, 0.05, 0.1])
    """
    low, high = (math.log10(limit) for limit in (0.8 * min(times_s), 1.25 * max(times_s)))
    first, last = math.floor(low), math.ceil(high)
    if last - first > 2:
        return [10.0**power for power in range(first, last + 1)]
    steps = [float(f"{lead}e{power}") for power in range(first, last + 1) for lead in (1, 2, 5)]
    below, above = (sum(math.log10(step) <= limit for step in steps) for limit in (low, high))
    return steps[max(0, below - 1) : above + 1]


def _methods(scores: list[Facts]) -> list[str]:
    """Return the names of all methods, in the order of the record."""
    return list(dict.fromkeys(row["method"] for row in scores))


def _time_figure(setting: str, rows: list[Facts], methods: list[str]) -> Figure:
    import plotly.graph_objects as go

    drawn, keys, words = [], [], []
    for row in rows:
        colour, symbol, sign = mark(methods.index(row["method"]))
        half = row.get("ci95") or 0.0
        bars = {
            "type": "data",
            "array": [half if math.isfinite(half) else 0.0],
            "thickness": 1.5,
            "width": 5,
        }
        place = {"x": [row["adapt_time_s"]], "y": [row["mean"]], "error_y": bars, "mode": "markers"}
        text = f"{escape(row['method'])}: {score_text(row)} in {time_text(row['adapt_time_s'])}"
        style: dict[str, Any] = {"color": colour, "symbol": symbol, "size": 11}
        drawn.append(go.Scatter(**place, marker=style, hoverinfo="text", text=[text]))
        keys.append(Key(row["method"], sign, colour))
        words.append(f"{row['method']} {score_text(row)} in {time_text(row['adapt_time_s'])}")
    log_y = rows[0]["better"] == "lower" and all(row["mean"] > 0 for row in rows)
    layout = plain_layout("time to adapt to one task", score_words(rows[0]["name"]), log_y)
    ticks = time_ticks([row["adapt_time_s"] for row in rows])
    ends = [math.log10(ticks[0]), math.log10(ticks[-1])]
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [time_text(tick) for tick in ticks],
        "range": ends,
    }
    alt = f"Score against time to adapt, {setting}: {'; '.join(words)}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, "", 300, tuple(keys), setting)


def _reliability_figure(setting: str, rows: list[Facts], methods: list[str]) -> Figure:
    import plotly.graph_objects as go

    diagonal = go.Scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "width": 2}, hoverinfo="skip"
    )
    drawn, keys, words = [diagonal], [], []
    for row in rows:
        colour, symbol, sign = mark(methods.index(row["method"]))
        bins, error = row["calibration"]["bins"], row["calibration"]["ece"]
        sizes = [5 + 14 * math.sqrt(part["share"]) for part in bins]
        drawn.append(
            go.Scatter(
                x=[part["confidence"] for part in bins],
                y=[part["accuracy"] for part in bins],
                mode="lines+markers",
                name=escape(row["method"]),
                line={"color": colour, "width": 1.5},
                marker={"symbol": symbol, "size": sizes, "opacity": 0.8},
            )
        )
        keys.append(Key(f"{row['method']}: {error:.3f}", sign, colour))
        words.append(f"{row['method']} {error:.3f}")
    layout = plain_layout("how sure (confidence)", "how often right (accuracy)")
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"range": [-0.03, 1.03]}
    alt = f"Accuracy against confidence, {setting}; expected calibration error: {', '.join(words)}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, "", 340, tuple(keys), setting)
