"""Plots: a run in, figures out, each with a caption and a text alternative.

A figure is described in plotly's JSON and drawn by `weightloom.report.drawing`. The page colours
text and grid, in light and in dark. Colours of the data have a contrast of 3:1 on both, and marks
differ in shape too, so that no reader needs to tell red from green.
"""

import math
from typing import Any, NamedTuple

from weightloom.report.run import Facts, Run
from weightloom.report.scores import score_words

BLUE, ORANGE, GREY = "#3b82f6", "#cf6c0f", "#7f8ea3"
POINTS_DRAWN = 1500
"""Maximum number of points of a line or a map; longer ones are thinned."""
FEW = 30
"""Lines with fewer points than this have a mark at each."""
COLOURS = (
    BLUE,
    ORANGE,
    "#0f9d7a",
    "#d1479c",
    "#8b5cf6",
    "#a88a0a",
    "#0598b5",
    "#e25563",
    "#7a8b2a",
    "#a0724a",
)
SIGNS = (("circle", "●"), ("square", "■"), ("diamond", "◆"), ("triangle-up", "▲"), ("cross", "✚"))
"""Plotly's name of each mark, and its character in a `Key`."""
SYMBOL_OF_SIGN = {sign: symbol for symbol, sign in SIGNS} | {
    "―": "solid",
    "┄": "dot",
    "○": "circle-open",
}
"""Mark or dash that each character in a `Key` stands for."""


class Key(NamedTuple):
    """One entry of a legend, which the page writes below the plot."""

    name: str
    sign: str
    """A character of `SYMBOL_OF_SIGN`."""
    colour: str


class Figure(NamedTuple):
    """One plot, ready for the page."""

    plot: str
    """Data and layout in plotly's JSON; see `as_json`."""
    alt: str
    """Text alternative, read by screen readers."""
    caption: str
    height: int
    """In CSS pixels."""
    keys: tuple[Key, ...] = ()
    title: str = ""
    """Heading above the plot; empty for none."""


def learning_curves(run: Run) -> list[Figure]:
    """Plot the training loss, of each turn by itself, and the validation score against steps."""
    turns: dict[str | None, list[Facts]] = {}
    for row in run.training:
        turns.setdefault(row.get("turn"), []).append(row)
    lower = lower_is_better(run)
    figures = [_loss_curve(rows, turn, lower) for turn, rows in turns.items()]
    if run.validation:
        figures.append(_validation_curve(run))
    return figures


def lower_is_better(run: Run) -> bool:
    """Return True if a lower score is better, by the run's record, facts or log."""
    rows = [*(run.record.get("scores") or []), run.facts, *run.validation]
    return any(row.get("better") == "lower" or row.get("score_name") == "mse" for row in rows)


def plain_layout(x_title: str | None, y_title: str | None, log_y: bool = False) -> Facts:
    """Return the plotly layout shared by all plots; the page colours text and grid."""
    axis = {"automargin": True, "zeroline": False, "showgrid": True}
    log = {"type": "log", "tickformat": "~g", "nticks": 3} if log_y else {}
    return {
        "template": {},
        "showlegend": False,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "x unified" if x_title == "step" else "closest",
        "xaxis": axis | {"title": {"text": x_title}},
        "yaxis": axis | {"title": {"text": y_title}} | log,
    }


def mark(index: int) -> tuple[str, str, str]:
    """Return colour, plotly name and text character of the mark of a legend entry, by its index.

    Example:
        >>> mark(0)
        ('#3b82f6', 'circle', '●')
    """
    symbol, sign = SIGNS[index % len(SIGNS)]
    return COLOURS[index % len(COLOURS)], symbol, sign


def as_json(figure: Any) -> str:
    """Return a plotly figure as JSON, safe inside HTML: each ``<`` is escaped."""
    return str(figure.to_json()).replace("<", "\\u003c")


def trailing_means(values: list[float], span: int) -> list[float]:
    """Return the mean of each value and the ``span - 1`` before it; NaN and infinity are skipped.

    Example:
        >>> trailing_means([1.0, 3.0, 5.0], span=2)
        [1.0, 2.0, 4.0]
    """
    kept = [value if math.isfinite(value) else 0.0 for value in values]
    sums, counts = [0.0], [0]
    for value, shown in zip(values, kept, strict=True):
        sums.append(sums[-1] + shown)
        counts.append(counts[-1] + math.isfinite(value))
    starts = [max(0, end - span) for end in range(1, len(sums))]
    return [
        (sums[end] - sums[start]) / (counts[end] - counts[start])
        if counts[end] > counts[start]
        else math.nan
        for end, start in enumerate(starts, start=1)
    ]


def _loss_curve(rows: list[Facts], turn: str | None, lower: bool) -> Figure:
    import plotly.graph_objects as go

    name = ", ".join(filter(None, ("training loss", turn)))
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    span = max(1, len(losses) // 25)
    every = max(1, math.ceil(len(losses) / POINTS_DRAWN))
    smooth = trailing_means(losses, span)
    line = go.Scatter(
        x=steps[::every],
        y=smooth[::every],
        name=f"mean of {span} rows" if span > 1 else "logged",
        mode="lines+markers" if len(losses) < FEW else "lines",
        line={"color": BLUE, "width": 2.5},
    )
    faint = {"color": BLUE, "width": 1}
    logged = go.Scatter(
        x=steps[::every], y=losses[::every], name="logged", mode="lines", line=faint, opacity=0.45
    )
    positive = all(loss > 0 for loss in losses if math.isfinite(loss))
    log_y = lower and positive
    return Figure(
        as_json(
            go.Figure([logged, line] if span > 1 else [line], plain_layout("step", name, log_y))
        ),
        f"{name.capitalize()}: {smooth[0]:.3g} at step {steps[0]}, {smooth[-1]:.3g} at step "
        f"{steps[-1]}",
        f"{_direction(turn)}{', on a logarithmic axis' if log_y else ''}. "
        f"{_loss_words(span, steps)}",
        300,
    )


def _direction(turn: str | None) -> str:
    return "Lower is better" if turn is None else f"Lower is better for the turn of {turn} alone"


def _loss_words(span: int, steps: list[int]) -> str:
    """Explain the lines of the loss curve that are there."""
    if len(steps) == 1:
        return "The loss was logged once."
    if span == 1:
        return "The loss as logged."
    return (
        f"The faint line is the loss as logged, the strong one its mean over the last {span} "
        "logged rows; where the strong line is level, learning has stalled."
    )


def _validation_curve(run: Run) -> Figure:
    import plotly.graph_objects as go

    steps = [row["step"] for row in run.validation]
    scores = [row["validation_score"] for row in run.validation]
    name = score_words(run.validation[-1].get("score_name", "score"))
    lower = lower_is_better(run)
    log_y = lower and all(score > 0 for score in scores if math.isfinite(score))
    style = {"color": ORANGE, "width": 2.5}
    line = go.Scatter(x=steps, y=scores, name=name, mode="lines+markers", line=style, marker_size=6)
    words = "Measured once, on tasks that the training does not see."
    if len(scores) > 1 and not run.training:
        words = "Measured on tasks that the training does not see."
    elif len(scores) > 1:
        words = (
            "Measured on tasks that the training does not see: if it gets worse while the training "
            "loss still falls, the model is overfitting its training tasks."
        )
    return Figure(
        as_json(go.Figure([line], plain_layout("step", f"validation {name}", log_y))),
        f"Validation {name}: {scores[0]:.3g} at step {steps[0]}, {scores[-1]:.3g} at step "
        f"{steps[-1]}",
        f"{'Lower' if lower else 'Higher'} is better. {words}",
        300,
    )
